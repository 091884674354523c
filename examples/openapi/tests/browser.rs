//! Test of the page in Chromium, by WebDriver: it authorizes with a token and calls an operation.

use fantoccini::Locator;
use serde_json::json;

use super::chromium::{Browser, Driver, WATCHDOG};
use super::*;

/// The operation `balance` on the page.
const OPERATION: &str = "//*[@id='operations-default-balance']";

#[tokio::test]
async fn the_page_authorizes_and_calls_an_operation() {
    let Some(driver) = Driver::shared("the_page_authorizes_and_calls_an_operation") else { return };
    let origin = format!("http://{}", start().await);
    // All other hosts are unknown: the page must not need the internet.
    let hosts = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1";
    let profile = std::env::temp_dir().join(format!("tollgate-openapi-{}", std::process::id()));
    let browser = Browser::open_with(&driver, &origin, profile, json!({}), &[hosts]).await;

    let find = async |xpath: &str| {
        let found = browser.client.wait().at_most(WATCHDOG).for_element(Locator::XPath(xpath)).await;
        found.unwrap_or_else(|error| panic!("{xpath}: {error}"))
    };
    let click = async |xpath: &str| find(xpath).await.click().await.unwrap();
    browser.goto("/docs/").await;

    // A call without a token.
    click(&format!("{OPERATION}//button[contains(@class, 'opblock-control-arrow')]")).await;
    click(&format!("{OPERATION}//button[normalize-space(.)='Try it out']")).await;
    let status = async || {
        click(&format!("{OPERATION}//button[normalize-space(.)='Execute']")).await;
        // The table of the documented responses has such cells too, and its header as well.
        let table = "//table[contains(@class, 'live-responses-table')]//tr[contains(concat(@class, ' '), 'response ')]";
        let cell = find(&format!("{OPERATION}{table}/td[contains(@class, 'response-col_status')]")).await;
        let text = cell.text().await.unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(status().await, "401");

    // The page offers both schemes. Authorize by the first.
    click("//button[contains(@class, 'authorize')]").await;
    let dialog = "//*[contains(@class, 'dialog-ux')]";
    find(&format!("{dialog}//code[text()='bearer']")).await;
    find(&format!("{dialog}//code[text()='api_key']")).await;
    find("//*[@id='auth-bearer-value']").await.send_keys(TRADER).await.unwrap();
    let form = "//form[.//*[@id='auth-bearer-value']]";
    click(&format!("{form}//button[normalize-space(.)='Authorize']")).await;
    // The form now shows that it is authorized, and has no field.
    click(&format!("{dialog}//button[normalize-space(.)='Close']")).await;

    click(&format!("{OPERATION}//button[normalize-space(.)='Clear']")).await;
    assert_eq!(status().await, "200");
}
