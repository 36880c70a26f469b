//! `POST /v1/actions`: one observation, one answer.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::json;
use tensact::telemetry::TraceId;
use tensact::{InferError, Refusal};
use tokio::time::timeout;

use super::{refuse, refuse_with};
use crate::failure::Failure;
use crate::serving::{Caller, Format, Serving};
use crate::telemetry::traces::TraceContext;
use crate::wire::write_msgpack;

/// Names of msgpack.
const MSGPACK: [&str; 4] =
    ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack", "application/octet-stream"];

pub(super) async fn actions(State(serving): State<Arc<Serving>>, headers: HeaderMap, body: Body) -> Response {
    let Some(format) = format(&headers) else {
        let message = "expected content-type application/json or application/msgpack";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", message);
    };
    let message = match message(&serving, body).await {
        Ok(message) => message,
        Err(response) => return response,
    };
    let answer_format = match headers.get(ACCEPT) {
        Some(accept) if accept.as_bytes().starts_with(b"application/json") => Format::Json,
        Some(accept) if MSGPACK.iter().any(|name| accept.as_bytes().starts_with(name.as_bytes())) => {
            Format::Msgpack
        }
        _ => format,
    };
    let mut context = TraceContext::of_headers(&headers);
    match serving.answer(message, format, &Caller::default(), "POST /v1/actions", &mut context).await {
        Ok(answer) => match answer_format {
            Format::Json => axum::Json(answer.value(None)).into_response(),
            Format::Msgpack => {
                ([(CONTENT_TYPE, MSGPACK[0])], write_msgpack(&answer.value(None))).into_response()
            }
        },
        Err(failure) => refused(&failure, context.trace),
    }
}

/// The body of a client that is not too slow, within the limit.
async fn message(serving: &Serving, body: Body) -> Result<Bytes, Response> {
    let limits = serving.config.server.limits;
    let body = Limited::new(body, limits.message_bytes);
    match timeout(limits.idle(), body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is longer than {} bytes", limits.message_bytes);
            Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "bad_request", &message))
        }
        Ok(Err(error)) => Err(refuse(StatusCode::BAD_REQUEST, "bad_request", &error.to_string())),
        Err(_) => {
            let message = format!("the body did not come within {:?}", limits.idle());
            Err(refuse(StatusCode::REQUEST_TIMEOUT, "bad_request", &message))
        }
    }
}

fn format(headers: &HeaderMap) -> Option<Format> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim();
    if value.eq_ignore_ascii_case("application/json") {
        Some(Format::Json)
    } else {
        MSGPACK.iter().any(|known| value.eq_ignore_ascii_case(known)).then_some(Format::Msgpack)
    }
}

/// A refusal with the queue's numbers.
fn refused(failure: &Failure, trace: TraceId) -> Response {
    let status = match failure {
        Failure::Infer(InferError::Refused(refusal)) => match refusal {
            Refusal::QueueFull { .. } | Refusal::DeadlineImpossible { .. } => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Superseded { .. } => StatusCode::CONFLICT,
            Refusal::Expired { .. } => StatusCode::GATEWAY_TIMEOUT,
            Refusal::Failed { .. } | Refusal::OutOfService { .. } | Refusal::Closed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        },
        Failure::Infer(InferError::Interrupted | InferError::NotFinite) | Failure::Interrupted => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        Failure::Loading => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    let mut error = json!({ "kind": failure.outcome(), "message": failure.to_string(), "trace_id": trace });
    match failure {
        Failure::Infer(InferError::Refused(Refusal::QueueFull { waiting, capacity })) => {
            error["waiting"] = json!(waiting);
            error["capacity"] = json!(capacity);
        }
        Failure::Infer(InferError::Refused(Refusal::DeadlineImpossible {
            deadline_ms,
            expected_ms,
            ahead,
        })) => {
            error["deadline_ms"] = json!(deadline_ms);
            error["expected_ms"] = json!(expected_ms);
            error["ahead"] = json!(ahead);
        }
        _ => {}
    }
    let mut response = refuse_with(status, error);
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
