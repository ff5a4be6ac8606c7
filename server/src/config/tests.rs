use super::*;
use crate::scratch::Scratch;
use std::fs;

const JSON: &str = "server_config.json";
const YAML: &str = "server_config.yaml";

fn check_text(name: &str, text: &str) -> Result<Checked, ConfigError> {
    let loaded = config::parse::<Raw>(Path::new(name), text)?;
    check(loaded.raw, loaded.places, &Overrides::default())
}

#[test]
fn every_example_loads_and_both_formats_say_the_same() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/examples");
    let mut seen = 0;
    for case in fs::read_dir(&examples).unwrap() {
        let case = case.unwrap().path();
        let checked: Vec<_> = [JSON, YAML]
            .map(|name| {
                load(Some(&case.join(name)), &Overrides::default())
                    .unwrap_or_else(|e| panic!("{e}"))
            })
            .into();
        assert_eq!(checked[0].config, checked[1].config, "{}", case.display());
        for checked in &checked {
            assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
}

#[test]
fn the_full_example_spells_out_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/examples/full")
        .join(YAML);
    let full = load(Some(&path), &Overrides::default()).unwrap().config;
    // As Windows writes it when it is made absolute.
    let folder = std::path::absolute(path.parent().unwrap()).unwrap();
    let folder = folder.as_path();
    let bare = load(None, &Overrides::default()).unwrap().config;
    let here = std::env::current_dir().unwrap();
    assert_eq!(bare.identity_key_file, here.join("server_identity_key.hex"));
    assert_eq!(bare.allowed_clients_file, here.join("allowed_clients.txt"));
    assert_eq!(
        (bare.port, bare.bind, bare.tunnel_bind),
        (9000, "::".parse().unwrap(), "::".parse().unwrap())
    );
    assert_eq!(bare.allowed_ports, PortSet::Any);
    assert_eq!(full.allowed_ports.to_string(), "8080, 10000-20000");
    assert!(full.allowed_ports.contains(10000) && full.allowed_ports.contains(20000));
    assert!(!full.allowed_ports.contains(8081) && !full.allowed_ports.contains(20001));
    let expected = Config {
        tunnel_bind: "0.0.0.0".parse().unwrap(),
        identity_key_file: folder.join("server_identity_key.hex"),
        allowed_clients_file: folder.join("allowed_clients.txt"),
        allowed_ports: full.allowed_ports.clone(),
        // By default less where the system has little.
        memory_budget: 256 << 20,
        ..bare
    };
    assert_eq!(full, expected);
}

#[test]
fn the_command_line_wins() {
    let loaded =
        config::parse::<Raw>(Path::new(YAML), "{port: 0, bind: 10.0.0.1, grace: 1.5}").unwrap();
    let overrides = Overrides {
        port: Some(0),
        bind: Some("127.0.0.1".parse().unwrap()),
        grace: Some(Duration::ZERO),
    };
    let Checked { config, warnings } = check(loaded.raw, loaded.places, &overrides).unwrap();
    assert_eq!((config.port, config.grace), (0, Duration::ZERO));
    assert_eq!(config.bind, overrides.bind.unwrap());
    assert_eq!(
        config.tunnel_bind, config.bind,
        "public ports follow the address that is in force"
    );
    assert!(
        warnings.is_empty(),
        "a port 0 asked for on the command line is meant: {warnings:?}"
    );
}

#[test]
fn paths_start_at_the_folder_of_the_file() {
    let dir = Scratch::new();
    fs::write(
        dir.path().join(JSON),
        r#"{"identity_key_file": "keys/id.hex", "allowed_clients_file": "/etc/allowed"}"#,
    )
    .unwrap();
    let config = load(Some(&dir.path().join(JSON)), &Overrides::default())
        .unwrap()
        .config;
    assert_eq!(config.identity_key_file, dir.path().join("keys/id.hex"));
    #[cfg(unix)]
    assert_eq!(config.allowed_clients_file, Path::new("/etc/allowed"));
    assert_eq!(dir.names(), [JSON], "checking writes nothing");
    assert!(load(Some(Path::new("server_config.json")), &Overrides::default()).is_err());
}

#[test]
fn broken_inputs_are_told_exactly() {
    let top = "Known here: `port`, `bind`, `tunnel_bind`, `identity_key_file`, `allowed_clients_file`, `max_clients`, \
               `allowed_ports`, `compression`, `memory_budget`, `limits`, `timeouts`, `grace`, `logging`, \
               `server_listener`, `target_service`, `tls`, `forwards`";
    let range = "a port from 1 to 65535 such as \"8080\", or a range such as \"10000-20000\"";
    let address = "is not an IP address; use \"::\" for all addresses, \"0.0.0.0\" for IPv4 only, \
                   or one address of this machine, without a port";
    let cases: Vec<(&str, &str, String)> = vec![
        (JSON, "", "server_config.json: the file is empty; the least that JSON needs is {}".into()),
        (JSON, "[]", "server_config.json:1:1: the file must hold keys and values at its top level".into()),
        (YAML, "just words", "server_config.yaml:1:1: the file must hold keys and values at its top level".into()),
        (JSON, "{\n \"prot\": 1}", format!("server_config.json:2:2: unknown key `prot`; did you mean `port`? {top}")),
        (YAML, "tunnel-bind: '::'", format!("server_config.yaml:1:1: unknown key `tunnel-bind`; did you mean `tunnel_bind`? {top}")),
        (YAML, "colour: red", format!("server_config.yaml:1:1: unknown key `colour`. {top}")),
        (
            JSON,
            r#"{"timeouts": {"helo": 3}}"#,
            "server_config.json:1:15: timeouts: unknown key `helo`; did you mean `hello`? \
             Known here: `hello`, `first_frame`, `pairing`, `session_silence`, `connect`, `write`, `idle`"
                .into(),
        ),
        (
            JSON,
            "{\"port\": 1,\n \"port\": 2}",
            "server_config.json:2:2: the key `port` appears twice (first on line 1); only one can be meant, remove the other".into(),
        ),
        (JSON, r#"{"port": 70000}"#, "server_config.json:1:10: port: expected a port from 0 to 65535, found the number 70000".into()),
        (JSON, r#"{"port": -1}"#, "server_config.json:1:10: port: expected a port from 0 to 65535, found the number -1".into()),
        (YAML, "port: '9000'", "server_config.yaml:1:7: port: expected a port from 0 to 65535, found the text \"9000\"".into()),
        (JSON, r#"{"port": 9000.5}"#, "server_config.json:1:10: port: expected a port from 0 to 65535, found the number 9000.5".into()),
        (JSON, r#"{"bind": 7}"#, "server_config.json:1:10: bind: expected text, found the number 7; put it in quotes".into()),
        (JSON, r#"{"bind": "localhost"}"#, format!("server_config.json:1:2: bind: \"localhost\" {address}")),
        (YAML, "\n\ntunnel_bind: 1.2.3.4:80", format!("server_config.yaml:3:1: tunnel_bind: \"1.2.3.4:80\" {address}")),
        (
            JSON,
            r#"{"identity_key_file": " "}"#,
            "server_config.json:1:2: identity_key_file: the file name is empty; name a file, or leave the key out for the default".into(),
        ),
        (
            JSON,
            r#"{"logging": {"log_file": "allowed_clients.txt"}}"#,
            "server_config.json:1:14: logging.log_file: this file is another file of the server already; the log needs one of its own".into(),
        ),
        (JSON, r#"{"logging": {"level": "loud"}}"#, "server_config.json:1:23: logging.level: expected \"error\", \"warn\", \"info\", \"debug\" or \"trace\", found the text \"loud\"".into()),
        (
            JSON,
            r#"{"identity_key_file": "a", "allowed_clients_file": "a"}"#,
            "server_config.json:1:28: allowed_clients_file: this is the identity key file as well; each needs a file of its own".into(),
        ),
        (JSON, r#"{"max_clients": 0}"#, "server_config.json:1:17: max_clients: expected a whole number from 1 to 1000000, found the number 0".into()),
        (
            JSON,
            r#"{"limits": {"pairs": 0}}"#,
            "server_config.json:1:22: limits.pairs: expected a whole number from 1 to 1000000, found the number 0".into(),
        ),
        (JSON, r#"{"memory_budget": 1000}"#, "server_config.json:1:19: memory_budget: expected a size from 1 MiB to 1024 GiB, such as \"64 MiB\" or 67108864, found the number 1000".into()),
        (JSON, r#"{"limits": []}"#, "server_config.json:1:12: limits: expected a group of keys, found a list".into()),
        (
            JSON,
            r#"{"allowed_ports": "8080"}"#,
            "server_config.json:1:19: allowed_ports: expected a list of ports and ranges, such as [\"8080\", \"10000-20000\"], found the text \"8080\"".into(),
        ),
        (JSON, r#"{"allowed_ports": ["80", "http"]}"#, format!("server_config.json:1:26: allowed_ports[1]: expected {range}, found the text \"http\"")),
        (JSON, r#"{"allowed_ports": ["0"]}"#, format!("server_config.json:1:20: allowed_ports[0]: expected {range}, found the text \"0\"")),
        (JSON, r#"{"allowed_ports": [70000]}"#, format!("server_config.json:1:20: allowed_ports[0]: expected {range}, found the number 70000")),
        (JSON, r#"{"allowed_ports": ["1-70000"]}"#, format!("server_config.json:1:20: allowed_ports[0]: expected {range}, found the text \"1-70000\"")),
        (
            YAML,
            "allowed_ports:\n  - 20-10",
            "server_config.yaml:2:5: allowed_ports[0]: expected a range with the smaller port first, such as \"10000-20000\", found the text \"20-10\"".into(),
        ),
        (
            JSON,
            r#"{"compression": "fast"}"#,
            "server_config.json:1:17: compression: expected \"auto\", \"off\" or \"on\", found the text \"fast\"".into(),
        ),
        (JSON, r#"{"timeouts": {"hello": 0}}"#, "server_config.json:1:24: timeouts.hello: expected a number of seconds from 0.001 to 31536000, found the number 0".into()),
        (JSON, r#"{"timeouts": {"hello": -2.5}}"#, "server_config.json:1:24: timeouts.hello: expected a number of seconds from 0.001 to 31536000, found the number -2.5".into()),
        (JSON, r#"{"grace": 1e9}"#, "server_config.json:1:11: grace: expected a number of seconds from 0 to 31536000, found the number 1000000000".into()),
        (JSON, r#"{"grace": "5s"}"#, "server_config.json:1:11: grace: expected a number of seconds from 0 to 31536000, found the text \"5s\"".into()),
        ("server.toml", "", "server.toml: the format of a configuration file is told by its name; let it end in .json, .yaml or .yml".into()),
    ];
    assert_eq!(cases.len(), 35);
    let mut wrong = Vec::new();
    for (name, text, message) in cases {
        let said = match check_text(name, text) {
            Ok(checked) => format!("{:?}", checked.config),
            Err(e) => e.to_string(),
        };
        if said != message {
            wrong.push(format!("{text}\n  says     {said}\n  expected {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_problems_of_the_checked_tier_are_said_at_once() {
    let error = check_text(
        YAML,
        "bind: here\ntunnel_bind: there\nidentity_key_file: ''",
    )
    .unwrap_err();
    let ConfigError::Invalid { problems, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        problems.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(),
        ["bind", "tunnel_bind", "identity_key_file"]
    );
    assert_eq!(error.to_string().lines().count(), 3);
}

#[test]
fn oddities_are_warned_about() {
    let cases = [
        (
            "{port: 0}",
            "server_config.yaml:1:2: port: port 0 lets the system choose another port at every start; clients need a fixed one",
        ),
        (
            "allowed_ports: []",
            "server_config.yaml:1:1: allowed_ports: the list is empty, so no tunnel can be opened; leave the key out to allow any port",
        ),
        (
            "allowed_ports: [9000]",
            "server_config.yaml:1:1: allowed_ports: the control port 9000 is among them; a tunnel cannot have it",
        ),
        (
            "limits:\n  pending_handshakes: 10\n  pending_handshakes_per_address: 20",
            "server_config.yaml:3:3: limits.pending_handshakes_per_address: 20 is more than limits.pending_handshakes (10), so one address can take every place",
        ),
        (
            "timeouts: {session_silence: 0.5}",
            "server_config.yaml:1:12: timeouts.session_silence: 0.5 s is short: clients send a heartbeat every 30 s by default \
             and would be dropped between two; use 45 or more, or shorten heartbeat_interval at every client",
        ),
    ];
    for (text, warning) in cases {
        assert_eq!(
            check_text(YAML, text).unwrap().warnings,
            [warning],
            "{text}"
        );
    }
}

mod forward;
