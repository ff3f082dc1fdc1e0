//! The metrics as Prometheus and the parser of OpenMetrics read them, and the alerts and the dashboard that use them.

use super::capture::Pcm;
use super::station::process::Ended;
use super::station::{Controller, Station, eventually, free_port};
use super::tree::Card;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SOON: Duration = Duration::from_secs(30);
const ID: &str = "0869-0389-034F6A21";
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Head and body of an answer.
fn fetch(port: u16, path: &str, accept: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\nAccept: {accept}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

fn scrape(controller: &Controller, accept: &str) -> (String, String) {
    eventually(SOON, "metrics", || fetch(controller.port()?, "/metrics", accept).filter(|(head, _)| head.contains(" 200 ")))
}

/// Exit code and output of a program that reads this text.
fn filter(program: &str, words: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new(program);
    let mut child = command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect(program);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// The value of a sample, given its name and labels.
fn value(text: &str, sample: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?.parse().ok()
}

/// Name, type and meaning of each family of OpenMetrics, and the labels of its samples.
fn families(text: &str) -> BTreeMap<String, (String, String, BTreeSet<String>)> {
    let mut families: BTreeMap<String, (String, String, BTreeSet<String>)> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').unwrap();
            name.clone_into(&mut last);
            assert!(families.insert(last.clone(), (kind.to_owned(), String::new(), BTreeSet::new())).is_none(), "{last} twice");
        } else if let Some(line) = line.strip_prefix("# HELP ") {
            families.get_mut(&last).unwrap().1 = line.strip_prefix(&format!("{last} ")).unwrap().to_owned();
        } else if let Some((_, labels)) = line.split_once('{') {
            let names = labels.match_indices("=\"").map(|(end, _)| labels[..end].rsplit([',', '{']).next().unwrap().to_owned());
            families.get_mut(&last).unwrap().2.extend(names.filter(|name| name != "le" && name.chars().all(|c| c.is_ascii_lowercase())));
        }
    }
    families
}

/// The samples that a family has, by name.
fn samples(families: &BTreeMap<String, (String, String, BTreeSet<String>)>) -> BTreeSet<String> {
    let suffixes = |kind: &str| match kind {
        "counter" => &["_total"][..],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_count", "_sum"],
        _ => &[""],
    };
    families.iter().flat_map(|(name, (kind, ..))| suffixes(kind).iter().map(move |suffix| format!("{name}{suffix}"))).collect()
}

/// The metrics that an expression names.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("silvasonic_")).map(str::to_owned).collect()
}

/// Every `expr` below a value.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| match value {
            Value::String(text) if key == "expr" => found.push(text.clone()),
            value => expressions(value, found),
        }),
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// A Prometheus.
struct Prometheus {
    _server: Ended,
    port: u16,
}

impl Prometheus {
    /// One that scrapes a Controller every second.
    fn start(station: &Station, target: u16) -> Prometheus {
        let text = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n  - {}\nscrape_configs:\n  - job_name: silvasonic\n    \
             static_configs:\n      - targets: ['127.0.0.1:{target}']\n",
            file("packaging/alerts.yml").display()
        );
        Prometheus::spawn(station, "prometheus", &text, &["--storage.tsdb.path=data"])
    }

    /// One with this configuration, in a folder of this name.
    fn spawn(station: &Station, name: &str, text: &str, options: &[&str]) -> Prometheus {
        let (dir, port) = (station.dir().join(name), free_port());
        fs::create_dir(&dir).unwrap();
        let config = dir.join("prometheus.yml");
        fs::write(&config, text).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.args(options).current_dir(&dir).stdin(Stdio::null());
        let log = File::create(dir.join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Prometheus { _server: Ended::spawn(command), port }
    }

    /// The sum of the samples of one of its own metrics.
    fn own(&self, metric: &str) -> f64 {
        let (_, text) = eventually(SOON, "metrics of Prometheus", || fetch(self.port, "/metrics", "*/*"));
        let of = |line: &str| line.strip_prefix(metric).filter(|rest| rest.starts_with(['{', ' '])).is_some();
        text.lines().filter(|line| of(line)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// `data` of an answer, or the error in it.
    fn ask(&self, path: &str) -> Option<Result<Value, String>> {
        let (_, body) = fetch(self.port, path, "*/*")?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        Some(if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) })
    }

    fn query(&self, expression: &str) -> Result<Value, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        eventually(SOON, "an answer of Prometheus", || self.ask(&format!("/api/v1/query?query={encoded}")))
    }
}

/// The variables of a dashboard that ask Prometheus: name, metric, and label whose values they are.
fn variables(dashboard: &Value) -> Vec<(&str, &str, &str)> {
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter().filter(|variable| variable["type"] == "query");
    variables
        .map(|variable| {
            let query = variable["query"]["query"].as_str().unwrap();
            let (selector, label) = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            (variable["name"].as_str().unwrap(), selector.split('{').next().unwrap(), label)
        })
        .collect()
}

fn recording<'a>(station: &'a Station) -> (Controller, Pcm<'a>) {
    station.tree.set(&[Card::ultramic(), Card::generic(1, "1-2").name("a\"b\\c{d=\"e\"} 1").serial("x\"y\\z")]);
    let controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    (controller, Pcm::of(station))
}

/// The heartbeat of a Recorder that states a level.
fn state_level(station: &Station, id: &str) {
    let recording = json!({"peak_dbfs": -3.5, "rms_dbfs": -21.25, "clipped": 7, "overruns": 1});
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let heartbeat = json!({"service": "recorder", "instance_id": id, "timestamp": time, "meta": {"recording": recording}});
    station.redis.recorder_heartbeat(id, &heartbeat.to_string());
}

#[test]
fn metrics_are_what_their_readers_expect() {
    let station = Station::up();
    let (controller, pcm) = recording(&station);
    let recording = format!("silvasonic_microphone_recording{{device=\"{ID}\"}}");
    let text = eventually(SOON, "a recording in the metrics", || {
        pcm.advance();
        state_level(&station, ID);
        let (head, text) = scrape(&controller, OPENMETRICS);
        assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
        (value(&text, &recording) == Some(1.0) && value(&text, "silvasonic_host_memory_size_bytes").is_some()).then_some(text)
    });
    for (sample, expected) in [
        ("silvasonic_microphones{state=\"recording\"}", 1.0),
        ("silvasonic_activity{activity=\"recording\"}", 1.0),
        ("silvasonic_service_up{service=\"podman\"}", 1.0),
        ("silvasonic_service_up{service=\"postgresql\"}", 1.0),
        ("silvasonic_service_up{service=\"redis\"}", 1.0),
        ("silvasonic_action_duration_seconds_count{action=\"start\"}", 1.0),
        ("silvasonic_capture_bytes_per_second", 768_000.0),
        (&format!("silvasonic_level_peak_dbfs{{device=\"{ID}\"}}"), -3.5),
        (&format!("silvasonic_level_rms_dbfs{{device=\"{ID}\"}}"), -21.25),
        (&format!("silvasonic_clipped_samples_total{{device=\"{ID}\"}}"), 7.0),
        (&format!("silvasonic_overruns_total{{device=\"{ID}\"}}"), 1.0),
        (&format!("silvasonic_microphone_wanted{{device=\"{ID}\"}}"), 1.0),
        (&format!("silvasonic_capture_state{{device=\"{ID}\",state=\"running\"}}"), 1.0),
    ] {
        assert_eq!(value(&text, sample), Some(expected), "{sample} in\n{text}");
    }
    for service in ["podman", "postgresql", "redis"] {
        let latency = value(&text, &format!("silvasonic_service_latency_seconds{{service=\"{service}\"}}"));
        assert!(latency.is_some_and(|seconds| seconds > 0.0 && seconds < 10.0), "{service} {latency:?}");
    }
    // The strict parser of the specification's authors.
    let script = "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse; \
                  print(sum(len(family.samples) for family in parse(sys.stdin.read())))";
    let (ok, output) = filter("/usr/bin/python3", &["-c", script], &text);
    assert!(ok && output.trim().parse::<usize>().is_ok_and(|count| count > 100), "{output}\n{text}");
    let (head, plain) = scrape(&controller, "*/*");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert_eq!(filter("promtool", &["check", "metrics"], &plain), (true, String::new()), "{plain}");

    // The name that the device gave itself stays one label.
    let name = text.lines().find(|line| line.starts_with("silvasonic_microphone_info") && !line.contains(ID)).unwrap();
    assert!(name.contains("name=\"a\\\"b\\\\") && name.ends_with("\"} 1"), "{name}");

    let families = families(&text);
    let document = fs::read_to_string(file("docs/interface.md")).unwrap();
    let table = document.split("<!-- metrics -->").nth(1).unwrap().split("<!-- /metrics -->").next().unwrap();
    let told: Vec<Vec<String>> = table
        .lines()
        .filter(|line| line.starts_with("| `silvasonic_"))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect())
        .collect();
    let row = |(name, (kind, help, labels)): (&String, &(String, String, BTreeSet<String>))| {
        let labels = labels.iter().cloned().collect::<Vec<_>>().join(", ");
        let suffix = samples(&BTreeMap::from([(name.clone(), (kind.clone(), String::new(), BTreeSet::new()))]));
        vec![if kind == "histogram" { name.clone() } else { suffix.first().unwrap().clone() }, kind.clone(), labels, help.clone()]
    };
    let mut expected: Vec<Vec<String>> = families.iter().map(row).collect();
    // No Recorder has ended here, and no rate was measured.
    for (name, labels) in [("silvasonic_recorder_ends_total", "code, device"), ("silvasonic_sample_rate_deviation_ratio", "device")] {
        expected.iter_mut().filter(|row| row[0] == name && row[2].is_empty()).for_each(|row| labels.clone_into(&mut row[2]));
    }
    expected.sort();
    let mut sorted = told.clone();
    sorted.sort();
    let shown = expected.iter().map(|row| format!("| `{}` | {} | {} | {} |\n", row[0], row[1], row[2], row[3])).collect::<String>();
    assert_eq!(sorted, expected, "the table should be\n{shown}");
}

#[test]
fn prometheus_scrapes_a_station_and_answers_what_the_dashboard_asks() {
    let station = Station::up();
    let (controller, pcm) = recording(&station);
    let families = families(&scrape(&controller, OPENMETRICS).1);
    let prometheus = Prometheus::start(&station, controller.port().unwrap());
    eventually(SOON, "a scrape", || {
        pcm.advance();
        let data = prometheus.query("silvasonic_microphone_recording == 1 and on (instance) up{job=\"silvasonic\"} == 1").ok()?;
        (data["result"][0]["metric"]["device"] == ID).then_some(())
    });
    let targets = prometheus.ask("/api/v1/targets").unwrap().unwrap();
    assert_eq!(targets["activeTargets"][0]["lastError"], "");
    // Its own parser has read types and units.
    let metadata = prometheus.ask("/api/v1/metadata?metric=silvasonic_gap_seconds").unwrap().unwrap();
    assert_eq!(metadata["silvasonic_gap_seconds"][0]["unit"], "seconds", "{metadata}");

    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file("packaging/grafana-dashboard.json")).unwrap()).unwrap();
    let known = samples(&families);
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() > 30);
    for expression in &found {
        assert!(named(expression).is_subset(&known), "{expression}");
        let answer = prometheus.query(&expression.replace("$job", ".*").replace("$instance", ".*"));
        assert!(answer.is_ok(), "{expression}: {answer:?}");
    }
    // What the variables offer, asked as Grafana does it.
    for (name, metric, label) in variables(&dashboard) {
        assert!(known.contains(metric), "${name}: {metric}");
        let values = prometheus.ask(&format!("/api/v1/label/{label}/values?match[]={metric}")).unwrap().unwrap();
        assert_eq!(values.as_array().map(Vec::len), Some(1), "${name}: {values}");
    }
    let rules = prometheus.ask("/api/v1/rules").unwrap().unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 4);
    for rule in rules {
        let expression = rule["query"].as_str().unwrap();
        assert!(named(expression).is_subset(&known), "{expression}");
        found.push(expression.to_owned());
    }
    // What nobody looks at is not needed.
    let used: BTreeSet<String> = found.iter().flat_map(|expression| named(expression)).collect();
    let is_used = |(name, (kind, ..)): &(&String, &(String, String, BTreeSet<String>))| {
        let one = BTreeMap::from([((*name).clone(), (kind.clone(), String::new(), BTreeSet::new()))]);
        !samples(&one).is_disjoint(&used)
    };
    let unused: Vec<&String> = families.iter().filter(|family| !is_used(family)).map(|(name, _)| name).collect();
    assert_eq!(unused, Vec::<&String>::new(), "neither the dashboard nor an alert uses them");
}

/// Processor time of a process, in hundredths of a second.
fn ticks(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum()
}

/// Passes connections on, and counts the bytes of both directions.
fn counting_relay(target: u16) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU64::new(0)));
    let copy = |mut from: TcpStream, mut to: TcpStream, count: Arc<AtomicU64>| {
        let mut bytes = [0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            count.fetch_add(length as u64, Ordering::SeqCst);
            if to.write_all(&bytes[..length]).is_err() {
                return;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    };
    let total = Arc::clone(&count);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
            let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let (one, other) = (Arc::clone(&total), Arc::clone(&total));
            thread::spawn(move || copy(client, server, one));
            thread::spawn(move || copy(back, forth, other));
        }
    });
    (port, count)
}

/// The figures in docs/fleet.md, of a station with four microphones whose agent is configured as written there.
#[test]
fn a_station_that_pushes_sends_what_the_documentation_says() {
    const SCRAPES: u64 = 20;
    const REQUESTS: u32 = 100;
    let station = Station::up();
    station.tree.set(&[0, 1, 2, 3].map(|n| Card::numbered(n).index(n)));
    let controller = station.controller_with(&[("SILVASONIC_HEARTBEAT_INTERVAL_S", "1")]);
    let pcms = [0, 1, 2, 3].map(|card| Pcm::of_card(&station, card));
    let ids = [0, 1, 2, 3].map(|number| format!("0869-0389-SER{number:04}"));
    let advance = || {
        pcms.iter().for_each(Pcm::advance);
        ids.iter().for_each(|id| state_level(&station, id));
    };
    let text = eventually(SOON, "four recordings", || {
        advance();
        let text = scrape(&controller, OPENMETRICS).1;
        let has_levels = text.matches("\nsilvasonic_level_peak_dbfs{").count() == 4;
        (value(&text, "silvasonic_microphones{state=\"recording\"}") == Some(4.0) && has_levels).then_some(text)
    });
    let (began, used) = (Instant::now(), ticks(controller.id()));
    (0..REQUESTS).for_each(|_| drop(scrape(&controller, OPENMETRICS)));
    let (request, used) = (began.elapsed() / REQUESTS, (ticks(controller.id()) - used) * 10.0 / f64::from(REQUESTS));

    let server = Prometheus::spawn(&station, "server", "{}", &["--storage.tsdb.path=data", "--web.enable-remote-write-receiver"]);
    let (relay, bytes) = counting_relay(server.port);
    let document = fs::read_to_string(file("docs/fleet.md")).unwrap();
    let config =
        document.split("```yaml\n").map(|rest| rest.split("```").next().unwrap()).find(|text| text.contains("remote_write")).unwrap();
    let mut text_of_agent = config.to_owned();
    // All but place and pace is as written: one request for each scrape, as with 60 s.
    for (written, here) in [
        ("scrape_interval: 60s", "scrape_interval: 1s".to_owned()),
        ("batch_send_deadline: 60s", "batch_send_deadline: 1s".to_owned()),
        ("localhost:9100", format!("127.0.0.1:{}", controller.port().unwrap())),
        ("https://metrics.example.org", format!("http://127.0.0.1:{relay}")),
        ("/etc/prometheus/password", station.dir().join("password").display().to_string()),
    ] {
        assert!(config.contains(written), "{written}");
        text_of_agent = text_of_agent.replace(written, &here);
    }
    fs::write(station.dir().join("password"), "secret").unwrap();
    let options = document.lines().find_map(|line| line.strip_prefix("ARGS=\"")?.strip_suffix('"')).unwrap();
    let options: Vec<&str> = options.split(' ').filter(|option| !option.contains("listen-address")).collect();
    let options: Vec<String> = options.iter().map(|option| option.replace("/var/lib/prometheus/", "")).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let agent = Prometheus::spawn(&station, "agent", &text_of_agent, &options);
    eventually(SOON, "samples at the server", || {
        advance();
        let data = server.query("count(silvasonic_microphone_recording{job=\"silvasonic\", instance=\"meadow\"} == 1)").ok()?;
        (data["result"][0]["value"][1] == "4").then_some(())
    });
    let names: Value = server.query("count by (__name__) ({__name__=~\".+\", __name__!~\"silvasonic_.*|up\"})").unwrap();
    assert_eq!(names["result"], json!([]), "more than the dashboard needs");
    let answer = server.query("count({__name__=~\".+\"})").unwrap();
    let samples: f64 = answer["result"][0]["value"][1].as_str().unwrap().parse().unwrap();

    let counters = || (agent.own("prometheus_remote_storage_samples_total"), bytes.load(Ordering::SeqCst) as f64);
    let before = counters();
    let after = eventually(SOON * 2, "scrapes that were sent", || {
        advance();
        let now = counters();
        (now.0 >= before.0 + samples * SCRAPES as f64).then_some(now)
    });
    assert_eq!(agent.own("prometheus_remote_storage_samples_failed_total"), 0.0);
    let scrapes = (after.0 - before.0) / samples;
    let each = (after.1 - before.1) / scrapes;
    let month = each * 60.0 * 24.0 * 30.0 / 1e6;
    println!(
        "{} bytes in {request:?}, {used:.2} ms of a core; {samples} samples a scrape, {each:.0} bytes for it by remote write, {month:.1} MB in 30 days at 60 s",
        text.len()
    );
    assert!(text.len() < 25_000 && samples < 300.0 && each < 5_000.0, "docs/fleet.md tells less");
}

#[test]
fn alerts_are_valid_and_fire_when_they_should() {
    for (words, name) in [(["check", "rules"], "packaging/alerts.yml"), (["test", "rules"], "packaging/alerts.test.yml")] {
        let output = Command::new("promtool").args(words).arg(file(name)).output().expect("promtool");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains("SUCCESS"), "{text}");
    }
}

/// That an object has no other fields than these, which are those that Grafana's model of a dashboard has.
fn only(object: &Value, fields: &str) {
    let known: BTreeSet<&str> = fields.split_whitespace().collect();
    let unknown: Vec<&String> = object.as_object().unwrap().keys().filter(|key| !known.contains(key.as_str())).collect();
    assert_eq!(unknown, Vec::<&String>::new(), "{object}");
}

/// The labels of a metric, as its table in the documentation names them.
fn labels_of(metric: &str) -> BTreeSet<String> {
    let document = fs::read_to_string(file("docs/interface.md")).unwrap();
    let row = document.lines().find(|line| line.starts_with(&format!("| `{metric}` |"))).unwrap_or_else(|| panic!("{metric}"));
    row.split('|').nth(3).unwrap().split(',').map(|label| label.replace('`', "").trim().to_owned()).collect()
}

#[test]
fn the_dashboard_has_the_shape_that_grafana_reads() {
    let text = fs::read_to_string(file("packaging/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert!(dashboard["id"].is_null() && dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    for key in ["uid", "title", "refresh"] {
        assert!(dashboard[key].as_str().is_some_and(|text| !text.is_empty()), "{key}");
    }
    assert!(dashboard["time"]["from"].is_string() && dashboard["time"]["to"].is_string());
    only(
        &dashboard,
        "__inputs __requires annotations description editable fiscalYearStartMonth graphTooltip id links liveNow panels refresh \
         schemaVersion style tags templating time timepicker timezone title uid version weekStart",
    );
    let prometheus = json!({ "type": "prometheus", "uid": "${datasource}" });
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        only(annotation, "datasource enable expr hide iconColor name titleFormat type");
        assert_eq!(annotation["datasource"], prometheus);
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for variable in variables {
        only(
            variable,
            "allValue current datasource definition hide includeAll label multi name options query refresh regex skipUrlSync sort type",
        );
        if variable["type"] == "query" {
            assert_eq!((&variable["datasource"], &variable["definition"]), (&prometheus, &variable["query"]["query"]));
        } else {
            assert_eq!((&variable["type"], &variable["query"]), (&json!("datasource"), &json!("prometheus")));
        }
    }
    let names: BTreeSet<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["datasource", "instance", "job"]));
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is used twice");
        let kind = panel["type"].as_str().unwrap();
        assert!(["row", "stat", "timeseries", "state-timeline", "table"].contains(&kind), "{title}: {kind}");
        let side = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(side("w") >= 1 && side("h") >= 1 && side("x") + side("w") <= 24, "{title}");
        for (x, y) in (side("x")..side("x") + side("w")).flat_map(|x| (side("y")..side("y") + side("h")).map(move |y| (x, y))) {
            assert!(places.insert((x, y)), "{title} covers another panel");
        }
        if kind == "row" {
            only(panel, "collapsed gridPos id panels title type");
            // The panels below a row that is open are not inside it.
            assert_eq!((&panel["collapsed"], &panel["panels"], side("w")), (&json!(false), &json!([]), 24), "{title}");
            continue;
        }
        only(panel, "datasource description fieldConfig gridPos id options targets title transformations type");
        assert_eq!(panel["datasource"], prometheus, "{title}");
        only(&panel["fieldConfig"], "defaults overrides");
        only(&panel["fieldConfig"]["defaults"], "color custom decimals displayName mappings max min noValue thresholds unit");
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let references: BTreeSet<&str> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert!(!targets.is_empty() && references.len() == targets.len(), "{title}");
        for target in targets {
            only(target, "datasource expr format instant legendFormat refId");
            assert_eq!(target["datasource"], prometheus, "{title}");
            // Every variable is one of the list, and a label of the legend is one of the result.
            let expression = target["expr"].as_str().unwrap();
            for label in target["legendFormat"].as_str().unwrap().split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap()) {
                let aggregated = expression.split("by (").nth(1).map(|rest| rest.split(')').next().unwrap());
                let is_there = match aggregated {
                    Some(labels) => labels.split(", ").any(|name| name == label),
                    None => label == "instance" || named(expression).iter().all(|metric| labels_of(metric).contains(label)),
                };
                assert!(is_there, "{title}: {{{{{label}}}}} of {expression}");
            }
            for variable in expression.split('$').skip(1) {
                let name: String = variable.chars().take_while(char::is_ascii_alphanumeric).collect();
                assert!(names.contains(name.as_str()), "{title}: ${name}");
            }
        }
    }
    assert!(ids.len() > 25);
}
