//! Handlers of aide take the caller and return rejections, and their document says so.

use aide::axum::ApiRouter;
use aide::axum::routing::{get, post};
use aide::openapi::OpenApi;
use axum::Router;
use serde_json::json;
use tollgate::{AuthLayer, Authenticated, Rejection, Scopes};

use crate::kit::*;

async fn list(caller: Authenticated<User>) -> &'static str {
    caller.principal().0
}

async fn greet(caller: Option<Authenticated<User>>) -> &'static str {
    caller.map_or("anonymous", |caller| caller.principal().0)
}

async fn place(_: Authenticated<User>) -> Result<&'static str, Rejection> {
    Err(Rejection::insufficient_scope(Scopes::new(["trade"]).unwrap()))
}

#[tokio::test]
async fn documented_handlers_take_the_caller_and_return_rejections() {
    aide::generate::infer_responses(true);
    let mut api = OpenApi::default();
    let gate = AuthLayer::new(memory()).allow_anonymous();
    let router: Router = ApiRouter::new()
        .api_route("/orders", get(list).post(place))
        .api_route("/greeting", post(greet))
        .finish_api(&mut api)
        .layer(gate);
    let document = serde_json::to_value(&api).unwrap();
    let responses = |path: &str, method: &str| document["paths"][path][method]["responses"].clone();
    let content = json!({ "application/problem+json": {} });
    for method in ["get", "post"] {
        assert_eq!(responses("/orders", method)["401"]["content"], content, "{document}");
    }
    assert!(responses("/greeting", "post").get("401").is_none(), "a token is optional");
    assert_eq!(responses("/orders", "post")["default"]["content"], content);

    let addr = serve(router).await;
    let url = |path: &str| format!("http://{addr}{path}");
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let send = async |method: &str, path: &str, token: Option<&str>| {
        let mut request = http::Request::builder().method(method).uri(url(path));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        client.request(request.body(Body::default()).unwrap()).await.unwrap()
    };
    assert_eq!(text(send("GET", "/orders", Some(TOKEN)).await).await, "Alice");
    assert_eq!(text(send("POST", "/greeting", None).await).await, "anonymous");
    assert_eq!(send("GET", "/orders", None).await.status(), 401);
    assert_eq!(send("POST", "/orders", Some(TOKEN)).await.status(), 403);
}
