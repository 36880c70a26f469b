//! The dashboard at `/dashboard`: a page in the binary, fed by server-sent events.

mod board;
mod events;
mod request;
mod tick;

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;

pub(crate) use events::Hub;

use crate::http::refuse;
use crate::serving::Serving;

/// Where the page and its files are: nobody needs a key to see that nothing is there for them.
pub(crate) const PAGE: &str = "/dashboard";

/// What a browser asks for without a key: all below the page but what holds data.
pub(crate) fn is_open(path: &str) -> bool {
    path == PAGE
        || path.strip_prefix("/dashboard/").is_some_and(|name| name.is_empty() || file(name).is_some())
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($name:literal: $kind:ident),* $(,)?) => {
        /// Name, content type and content of every file of the page.
        pub(crate) const FILES: &[(&str, &str, &str)] = &[$(($name, $kind, include_str!(concat!("assets/", $name)))),*];
    };
}

files! {
    "index.html": HTML,
    "style.css": CSS,
    "activities.js": JAVASCRIPT,
    "app.js": JAVASCRIPT,
    "board.js": JAVASCRIPT,
    "charts.js": JAVASCRIPT,
    "colours.js": JAVASCRIPT,
    "gantt.js": JAVASCRIPT,
    "page.js": JAVASCRIPT,
    "painter.js": JAVASCRIPT,
    "plan.js": JAVASCRIPT,
    "request.js": JAVASCRIPT,
    "slowest.js": JAVASCRIPT,
    "state.js": JAVASCRIPT,
    "stream.js": JAVASCRIPT,
    "timeline-input.js": JAVASCRIPT,
    "timeline.js": JAVASCRIPT,
    "words.js": JAVASCRIPT,
}

fn file(name: &str) -> Option<&'static (&'static str, &'static str, &'static str)> {
    FILES.iter().find(|(known, ..)| *known == name)
}

/// Everything below [`PAGE`].
pub(crate) fn router() -> Router<Arc<Serving>> {
    Router::new()
        .route(PAGE, get(async || serve("index.html")))
        // The page's links are relative to its folder.
        .route("/dashboard/", get(async || Redirect::permanent(PAGE)))
        .route("/dashboard/events", get(events::events))
        .route("/dashboard/requests/{trace}", get(request::request))
        .route("/dashboard/{file}", get(async |Path(name): Path<String>| serve(&name)))
}

fn serve(name: &str) -> Response {
    match file(name) {
        // A newer binary may have newer files.
        Some((_, kind, content)) => {
            ([(CONTENT_TYPE, *kind), (CACHE_CONTROL, "no-cache")], *content).into_response()
        }
        None => refuse(StatusCode::NOT_FOUND, "not_found", "the dashboard has no such file"),
    }
}

/// Milliseconds with the microseconds behind the point.
fn milliseconds(moment: std::time::Duration) -> f64 {
    moment.as_micros() as f64 / 1e3
}
