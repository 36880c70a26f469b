//! The page and its data, without a browser.

use serde_json::Value as Json;

use super::robot::observation;
use super::*;
use crate::dashboard::FILES;

/// The events of a stream that has just begun, by name.
async fn events(site: &Site, most: usize) -> Vec<(String, Json)> {
    let stream = site.get_until("/dashboard/events", "\n\n", most).await;
    let (_, body) = stream.split_once("\r\n\r\n").unwrap();
    let mut events = Vec::new();
    // Chunks begin with their length.
    for event in body.split("event: ").skip(1).take(most) {
        let (name, data) = event.split_once('\n').unwrap();
        let data = data.strip_prefix("data: ").unwrap().lines().next().unwrap();
        events.push((name.to_owned(), serde_json::from_str(data).unwrap()));
    }
    events
}

fn body(answer: &str) -> Json {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn all_files_of_the_page_are_in_the_binary() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dashboard/assets");
    let mut there: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut known: Vec<String> = FILES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    there.sort();
    known.sort();
    assert_eq!(there, known);
}

#[tokio::test(start_paused = true)]
async fn the_page_needs_no_key_and_its_data_does() {
    let site = Site::loading(Config::default(), ApiKeys::new(["secret"], "test").unwrap());
    site.load("").await;
    for (path, kind) in [
        ("/dashboard", "text/html"),
        ("/dashboard/app.js", "text/javascript"),
        ("/dashboard/style.css", "text/css"),
    ] {
        let answer = site.get(path).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(kind), "{path}: {answer}");
    }
    let answer = site.get("/dashboard/").await;
    assert!(answer.starts_with("HTTP/1.1 308") && answer.contains("location: /dashboard\r\n"), "{answer}");
    for path in
        ["/dashboard/events", "/dashboard/requests/00000000", "/dashboard/other.js", "/dashboard/../metrics"]
    {
        let answer = site.get(path).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{path}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_what_runs_where_and_goes_on_with_what_happens() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    let page = events(&site, 3);
    let asking = async {
        for number in 0..3 {
            robot.ask(&observation(number)).await.unwrap();
        }
    };
    let (events, ()) = tokio::join!(page, asking);
    let names: Vec<&str> = events.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["hello", "tick", "tick"]);
    let hello = &events[0].1;
    assert_eq!(hello["board"]["name"], "p150a");
    assert_eq!(
        (hello["emulated"].as_bool(), hello["board"]["chips"].as_array().unwrap().len()),
        (Some(true), 1)
    );
    let slices = hello["pipelines"][0]["slices"].as_array().unwrap();
    assert_eq!(slices.len(), 3);
    assert!(slices.iter().all(|slice| slice["predicted_ms"].as_f64().unwrap() > 0.0));

    let ticks: Vec<&Json> = events[1..].iter().map(|(_, tick)| tick).collect();
    let answered: Vec<&Json> = ticks.iter().flat_map(|tick| tick["answered"].as_array().unwrap()).collect();
    assert_eq!(answered.len(), 3);
    assert_eq!(ticks[1]["outcomes"]["done"], 3);
    assert_eq!(ticks[1]["slices"][0][0]["passes"], 3);
    let activities: Vec<&Json> =
        ticks.iter().flat_map(|tick| tick["activities"].as_array().unwrap()).collect();
    // Of each request a pass of vision and prefix, whose layers come as one, and the steps.
    let steps = site.serving.policy().unwrap().pipeline.sizes().steps;
    assert_eq!(activities.len(), 3 * (2 + steps), "{activities:?}");
    assert!(activities.iter().all(|activity| activity[2] == serde_json::json!([0]) && activity[3] == "pass"));

    // What was answered can be asked for, by the first digits too.
    let trace = answered[0][0].as_str().unwrap();
    for digits in [trace, &trace[..8]] {
        let request = body(&site.get(&format!("/dashboard/requests/{digits}")).await);
        assert_eq!((request["trace_id"].as_str(), request["outcome"].as_str()), (Some(trace), Some("done")));
        let latency = request["ended"].as_f64().unwrap() - request["began"].as_f64().unwrap();
        let path = request["path"].as_array().unwrap().iter();
        let path: f64 = path.map(|leg| leg["ended"].as_f64().unwrap() - leg["began"].as_f64().unwrap()).sum();
        let parts: f64 =
            request["parts"].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum();
        assert!(
            (path - latency).abs() < 0.01 * latency && (parts - latency).abs() < 0.01 * latency,
            "{request}"
        );
    }
    for (digits, status) in [("ffffffffffffffff", 404), ("abc", 400)] {
        let answer = site.get(&format!("/dashboard/requests/{digits}")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_that_waits_for_weights_holds_no_shutdown_up() {
    let site = Site::loading(Config::default(), ApiKeys::default());
    let page = site.get_until("/dashboard/events", "\r\n\r\n", 1).await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    site.serving.stop.cancel();
    site.serving.tasks.close();
    tokio::time::timeout(Duration::from_secs(60), site.serving.tasks.wait()).await.unwrap();
}
