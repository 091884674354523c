//! Steps that several stories have: signing in, and showing the token.

use super::*;

impl Browser {
    /// Fills the form of the sign-in page.
    pub(super) async fn give_credentials(&self, name: &str, password: &str) {
        self.fill("#name", name).await;
        self.fill("#password", password).await;
        self.press_button("Sign in").await;
    }

    pub(super) async fn sign_in(&self, name: &str) {
        self.goto("/sign-in").await;
        self.give_credentials(name, PASSWORD).await;
        assert_eq!(self.path().await, "/account");
    }

    /// Shows the token on the account page, and returns it.
    pub(super) async fn reveal(&self) -> String {
        self.goto("/account").await;
        self.press_button("Reveal").await;
        self.text("#secret").await
    }
}
