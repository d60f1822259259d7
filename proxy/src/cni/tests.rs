//! The plugin against an agent that is played, as far as it goes without a pod's network namespace.

use super::*;
use mesh_api::cni::Plugin;
use proptest::prelude::*;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

/// An agent that answers one question with this text, and tells the question.
fn agent(folder: &Path, answer: &'static str) -> (String, JoinHandle<Question>) {
    let path = folder.join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let played = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        // Whoever does not want to hear more may hang up.
        let _ = stream.write_all(answer.as_bytes());
        serde_json::from_str(&line).unwrap()
    });
    (path.display().to_string(), played)
}

fn conf(socket: &str) -> Value {
    let plugin = Plugin { socket: socket.to_owned(), ..Plugin::new(vec!["kube-system".to_owned()]) };
    let mut conf = serde_json::to_value(plugin).unwrap();
    conf["cniVersion"] = "1.0.0".into();
    conf["name"] = "pods".into();
    conf["prevResult"] =
        json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.0.5/16" }], "routes": [], "x": 1.5 });
    conf
}

const POD: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1";

fn call(command: &str, args: &str, conf: &Value) -> Result<Option<Value>, CniError> {
    let environment = |name: &str| match name {
        "CNI_COMMAND" => Some(command.to_owned()),
        "CNI_ARGS" => Some(args.to_owned()),
        "CNI_NETNS" => Some("/nowhere/netns".to_owned()),
        _ => None,
    };
    run(environment, conf.to_string().as_bytes())
}

#[test]
fn a_pod_that_needs_nothing_gets_what_it_got_before() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, asked) = agent(folder.path(), "\"none\"\n");
    let conf = conf(&socket);
    assert_eq!(call("ADD", POD, &conf), Ok(Some(conf["prevResult"].clone())));
    let [namespace, name, uid] = ["shop", "web-0", "u-1"].map(str::to_owned);
    assert_eq!(asked.join().unwrap(), Question::Pod { namespace, name, uid: Some(uid) });
}

#[test]
fn without_an_answer_there_is_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let error = call("ADD", POD, &conf("/nowhere/agent.sock")).unwrap_err();
    assert_eq!(error.code, 11);
    assert!(error.details.contains("hint: until it does, pods outside"), "{error}");
    for answer in ["", "\"none\"", "{}\n", "\"ready\"\n", "{\"unknown\":\"the API server does not answer\"}\n", "no\n"]
    {
        let (socket, asked) = agent(folder.path(), answer);
        assert_eq!(call("ADD", POD, &conf(&socket)).unwrap_err().code, 11, "{answer}");
        asked.join().unwrap();
        std::fs::remove_file(socket).unwrap();
    }
}

#[test]
fn what_a_node_lives_by_needs_no_agent() {
    let conf = conf("/nowhere/agent.sock");
    for args in ["K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns", "", "IgnoreUnknown=1"] {
        assert_eq!(call("ADD", args, &conf), Ok(Some(conf["prevResult"].clone())), "{args}");
    }
    for command in ["DEL", "GC", "STATUS"] {
        assert_eq!(call(command, POD, &conf), Ok(None), "{command}");
    }
    assert_eq!(call("CHECK", "", &conf), Ok(None));
}

#[test]
fn a_redirect_goes_into_the_pods_network_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, asked) = agent(folder.path(), "{\"redirect\":[\"--skip-inbound-ports\",\"4191\"]}\n");
    let error = call("ADD", POD, &conf(&socket)).unwrap_err();
    asked.join().unwrap();
    assert_eq!(error.code, 100);
    assert!(error.details.contains("cannot open the pod's network namespace /nowhere/netns"), "{error}");
}

#[test]
fn what_is_wrong_is_told_by_its_number() {
    let good = conf("/nowhere/agent.sock");
    let with = |key: &str, value: Value| {
        let mut conf = good.clone();
        conf[key] = value;
        conf
    };
    for (command, args, conf, code) in [
        ("FLY", POD, good.clone(), 4),
        ("ADD", "K8S_POD_NAME=web-0", good.clone(), 4),
        ("ADD", POD, json!([]), 1),
        ("ADD", POD, with("cniVersion", "0.2.0".into()), 1),
        ("ADD", POD, with("socket", Value::Null), 7),
        ("ADD", POD, with("prevResult", Value::Null), 7),
        ("STATUS", POD, with("excluded_namespaces", 1.into()), 7),
    ] {
        assert_eq!(call(command, args, &conf).unwrap_err().code, code, "{command} {args} {conf}");
    }
    let error = run(|name| (name == "CNI_COMMAND").then(|| "ADD".to_owned()), b"{").unwrap_err();
    assert_eq!(error.code, 6);
    let told = error.to_json("1.0.0");
    assert_eq!((told["cniVersion"].as_str(), told["code"].as_u64()), (Some("1.0.0"), Some(6)));
}

#[test]
fn versions_are_told_without_a_pod() {
    let told = call("VERSION", "", &json!({ "cniVersion": "1.0.0" })).unwrap().unwrap();
    assert_eq!(told["cniVersion"], "1.0.0");
    assert_eq!(told["supportedVersions"], json!(VERSIONS));
    assert_eq!(conf::version(b"{\"cniVersion\": \"9.0\"}"), "1.1.0");
}

#[test]
fn arguments_of_another_version_are_refused() {
    let args = |words: &[&str]| read_args(words.iter().map(|word| (*word).to_owned()).collect());
    assert_eq!(args(&["--proxy-uid", "7", "--skip-outbound-ports", "25"]).unwrap().proxy_uid, 7);
    for words in [&["--udp"][..], &["--proxy-uid"], &["--help"], &["x"], &["--skip-inbound-ports", "ssh"]] {
        assert!(args(words).unwrap_err().details.contains("hint: upgrade DaemonSet mesh-cni"), "{words:?}");
    }
}

#[test]
fn the_program_is_put_in_place_whole() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().to_owned();
    std::fs::write(to.join("mesh-cni"), "an older one").unwrap();
    install(&InstallArgs { to: to.clone() }).unwrap();
    let put = std::fs::metadata(to.join("mesh-cni")).unwrap();
    assert_eq!(put.len(), std::fs::metadata("/proc/self/exe").unwrap().len());
    assert_eq!(put.permissions().mode() & 0o777, 0o755);
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1);
    let error = install(&InstallArgs { to: to.join("none") }).unwrap_err();
    assert!(format!("{error:#}").contains("hint:"), "{error:#}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever comes in, there is an answer; and nothing but an excluded namespace or no pod passes without the agent.
    #[test]
    fn any_input_is_answered(
        command in "ADD|CHECK|STATUS|VERSION|GC|[A-Z]{0,4}",
        args in "(K8S_POD_(NAME|NAMESPACE|UID)=[a-z-]{0,12};|[ -~]{0,8}){0,4}",
        input in prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), Just(conf("/nowhere/agent.sock").to_string().into_bytes())],
    ) {
        let environment = |name: &str| match name {
            "CNI_COMMAND" => Some(command.clone()),
            "CNI_ARGS" => Some(args.clone()),
            _ => None,
        };
        let answer = run(environment, &input);
        if let (Ok(Some(_)), "ADD") = (&answer, command.as_str()) {
            let pod = Pod::read(Some(args.clone())).unwrap();
            prop_assert!(pod.is_none_or(|pod| pod.namespace == "kube-system"));
        }
    }
}
