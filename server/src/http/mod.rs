//! The HTTP side of the port: health, metadata, single requests, and the way up to a websocket.

mod actions;

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts as _, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value as Json, json};

use crate::dashboard;
use crate::listen::Admission;
use crate::openpi::session;
use crate::serving::Serving;
use crate::telemetry::metrics::TEXT;

/// What the HTTP side offers, for programs that write clients.
const OPENAPI: &str = include_str!("openapi.json");

/// Where no key is asked for: probes do not have one.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/openapi.json"];

/// Everything that the port answers.
pub(crate) fn router(serving: &Arc<Serving>) -> Router {
    Router::new()
        .route("/healthz", get("OK\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(([(CONTENT_TYPE, "application/json")], OPENAPI)))
        .merge(dashboard::router())
        .route("/v1/metadata", get(metadata))
        .route("/v1/actions", post(actions::actions))
        .fallback(websocket)
        .layer(from_fn_with_state(Arc::clone(serving), admit))
        .with_state(Arc::clone(serving))
}

/// An error as HTTP clients get it.
pub(crate) fn refuse(status: StatusCode, kind: &str, message: &str) -> Response {
    refuse_with(status, json!({ "kind": kind, "message": message }))
}

/// The same with more to say.
pub(super) fn refuse_with(status: StatusCode, error: Json) -> Response {
    (status, axum::Json(json!({ "error": error }))).into_response()
}

/// Lets in who may come in.
async fn admit(State(serving): State<Arc<Serving>>, request: Request, next: Next) -> Response {
    if let Some(Admission::Refused(reason)) = request.extensions().get::<Admission>() {
        let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", reason);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let path = request.uri().path();
    if OPEN.contains(&path) || dashboard::is_open(path) || serving.keys.admits(request.headers()) {
        return next.run(request).await;
    }
    let message = "no API key that is known: send the header `Authorization: Api-Key KEY`";
    let mut response = refuse(StatusCode::UNAUTHORIZED, "unauthorized", message);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Api-Key"));
    response
}

async fn ready(State(serving): State<Arc<Serving>>) -> Response {
    match serving.unready().await {
        None => "ready\n".into_response(),
        Some(reason) => refuse(StatusCode::SERVICE_UNAVAILABLE, "not_ready", &reason),
    }
}

async fn metrics(State(serving): State<Arc<Serving>>) -> ([(HeaderName, &'static str); 1], String) {
    serving.look().await;
    ([(CONTENT_TYPE, TEXT)], serving.metrics.text())
}

async fn metadata(State(serving): State<Arc<Serving>>) -> Response {
    match serving.policy() {
        Some(policy) => axum::Json(&policy.description).into_response(),
        None => refuse(StatusCode::SERVICE_UNAVAILABLE, "loading", "the weights are still being loaded"),
    }
}

/// A websocket, which robots open on any path.
async fn websocket(State(serving): State<Arc<Serving>>, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    let wants = parts.headers.contains_key(UPGRADE);
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &serving).await {
        Ok(upgrade) => upgrade,
        Err(rejection) if wants => return refuse(rejection.status(), "bad_request", &rejection.body_text()),
        Err(_) => {
            let message = format!("nothing is at {}: robots connect by websocket", parts.uri.path());
            return refuse(StatusCode::NOT_FOUND, "not_found", &message);
        }
    };
    let most = serving.config.server.limits.message_bytes;
    // Counted from here on, so that the server waits for it when it stops.
    let token = serving.tasks.token();
    upgrade.max_message_size(most).max_frame_size(most).on_upgrade(async move |socket| {
        session(socket, serving).await;
        drop(token);
    })
}
