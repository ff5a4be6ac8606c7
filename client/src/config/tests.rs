use super::*;
use crate::scratch::Scratch;
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::identity::KeyOrigin;
use std::fs;

const JSON: &str = "client_config.json";
const YAML: &str = "client_config.yaml";
/// RFC 8032, section 7.1, test 1.
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
/// The same, test 2: somebody else's.
const PIN: &str = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";

/// The example of the original's usage guide, byte for byte.
const GUIDE: &str = r#"{
  "server_host": "203.0.113.10",
  "server_port": 9000,
  "server_pub_key": "<SERVER_PUBLIC_KEY_HEX>",
  "tunnels": [
    {
      "id": "web-server",
      "remote_port": 8080,
      "local_host": "127.0.0.1",
      "local_port": 80,
      "auto_start": true
    }
  ]
}
"#;

fn check_text(name: &str, text: &str, pinning: Pinning) -> Result<Checked, KeyError> {
    let loaded = config::parse::<Raw>(Path::new(name), text)?;
    check(loaded.raw, loaded.places, pinning)
}

fn reverse_of(checked: Checked) -> Reverse {
    checked.config.reverse.expect("the reverse job runs")
}

/// What is compared between the formats: everything but the path of the file.
fn meaning(config: &Config) -> String {
    format!(
        "{:?}",
        Config {
            file: PathBuf::new(),
            ..config.clone()
        }
    )
}

#[test]
fn every_example_loads_and_both_formats_say_the_same() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/examples");
    let mut seen = 0;
    for case in fs::read_dir(&examples).unwrap() {
        let case = case.unwrap().path();
        let [json, yaml] = [JSON, YAML].map(|name| {
            load(&case.join(name), Pinning::Required).unwrap_or_else(|e| panic!("{e}"))
        });
        assert_eq!(
            meaning(&json.config),
            meaning(&yaml.config),
            "{}",
            case.display()
        );
        for checked in [json, yaml] {
            assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
            match &checked.config.reverse {
                Some(reverse) => {
                    assert!(reverse.server_pub_key.is_some() && reverse.tunnels[0].auto_start);
                }
                None => assert!(!checked.config.forwards.is_empty()),
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
}

#[test]
fn the_guides_file_loads_and_asks_for_the_pin() {
    let error = check_text(JSON, GUIDE, Pinning::Required).unwrap_err();
    assert_eq!(error.code(), Code::PIN_MISSING);
    assert_eq!(
        error.to_string(),
        "client_config.json:4:3: server_pub_key: this is not a public key (character 1 is not a hex digit; a key is \
         64 hex digits); the server prints its key when it starts (\"Server Identity Public Key (Pin in client \
         config): ...\") and with `minitcptunnel-server pubkey`; copy the 64 hex digits here"
    );
    let filled = GUIDE.replace("<SERVER_PUBLIC_KEY_HEX>", &PIN.to_uppercase());
    let Checked { config, warnings } = check_text(JSON, &filled, Pinning::Required).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let reverse = config.reverse.unwrap();
    assert_eq!(
        (reverse.server_host.as_str(), reverse.server_port),
        ("203.0.113.10", 9000)
    );
    assert_eq!(reverse.server_pub_key.unwrap().to_string(), PIN);
    assert!(reverse.identity.is_none());
    assert_eq!(
        (config.limits, config.timeouts, config.grace),
        (
            Limits::default(),
            Timeouts::default(),
            Duration::from_secs(5)
        )
    );
    assert_eq!(
        reverse.tunnels,
        [Tunnel {
            id: "web-server".into(),
            remote_port: 8080,
            local_host: "127.0.0.1".parse().unwrap(),
            local_port: 80,
            auto_start: true,
            compression: CompressionSetting::Auto,
        }]
    );
}

#[test]
fn only_a_missing_pin_can_be_waived() {
    let text = |pin: &str| {
        format!(
            "{{server_host: h, {pin} tunnels: [{{id: a, remote_port: 1, local_port: 1, auto_start: true}}]}}"
        )
    };
    for missing in ["", "server_pub_key: '',", "server_pub_key: ,"] {
        let error = check_text(YAML, &text(missing), Pinning::Required)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("server_pub_key: the server's public key is missing, so the server could not be told from an impostor; the server prints its key"),
            "{error}"
        );
        let checked = check_text(YAML, &text(missing), Pinning::InsecureOptional).unwrap();
        assert_eq!(checked.config.reverse.unwrap().server_pub_key, None);
        assert!(
            checked.warnings[0].contains("INSECURE: no server key is pinned"),
            "{:?}",
            checked.warnings
        );
    }
    assert!(
        check_text(
            YAML,
            &text("server_pub_key: oops,"),
            Pinning::InsecureOptional
        )
        .is_err()
    );
    let kept = check_text(
        YAML,
        &text(&format!("server_pub_key: {PIN},")),
        Pinning::InsecureOptional,
    )
    .unwrap();
    assert!(
        kept.config.reverse.unwrap().server_pub_key.is_some(),
        "a pin that is there is kept to"
    );
}

#[test]
fn nothing_secret_is_printed() {
    let text =
        format!("{{server_host: h, server_pub_key: {PIN}, identity_private_key_hex: '{SEED}'}}");
    let raw = config::parse::<Raw>(Path::new(YAML), &text).unwrap().raw;
    let checked = check_text(YAML, &text, Pinning::Required).unwrap();
    for shown in [format!("{raw:?}"), format!("{checked:#?}")] {
        assert!(!shown.contains(&SEED[..8]), "{shown}");
    }
    assert_eq!(
        reverse_of(checked).identity.unwrap().public().to_string(),
        PUBLIC
    );
    for broken in [&SEED[..62], &format!("{SEED}00"), &SEED.replace('9', "x")] {
        let error = check_text(YAML, &text.replace(SEED, broken), Pinning::Required).unwrap_err();
        assert_eq!(error.code(), Code::KEY_DAMAGED);
        let message = error.to_string();
        assert!(
            message
                .starts_with("client_config.yaml: identity_private_key_hex: the key is damaged: "),
            "{message}"
        );
        assert!(!message.contains(&broken[..8]), "{message}");
    }
}

#[test]
fn broken_inputs_are_told_exactly() {
    let at_tunnel = "tunnels: [{id: a, remote_port: 1, local_port: 1, auto_start: true}";
    let head = format!("server_host: h\nserver_pub_key: {PIN}\n");
    let how = "the server prints its key when it starts (\"Server Identity Public Key (Pin in client config): ...\") \
               and with `minitcptunnel-server pubkey`; copy the 64 hex digits here";
    let own =
        format!("identity_private_key_hex: '{SEED}'\nserver_host: h\nserver_pub_key: {PUBLIC}\n");
    let long = "x".repeat(256);
    let cases: Vec<(String, String)> = vec![
        (format!("server_pub_key: {PIN}"), "client_config.yaml: server_host: the key is missing; write the host name or IP address of the server".into()),
        (format!("server_host: ''\nserver_pub_key: {PIN}"), "client_config.yaml:1:1: server_host: it is empty; write a host name or an IP address".into()),
        (format!("server_host: h:9000\nserver_pub_key: {PIN}"), "client_config.yaml:1:1: server_host: write the host alone; the port has a key of its own".into()),
        (format!("server_host: http://h\nserver_pub_key: {PIN}"), "client_config.yaml:1:1: server_host: this is a URL; write the host name alone, without http:// and without a path".into()),
        (format!("{head}server_port: 0"), "client_config.yaml:3:14: server_port: expected a port from 1 to 65535, found the number 0".into()),
        ("server_host: h\nserver_pub_key: abc".into(), format!("client_config.yaml:2:1: server_pub_key: this is not a public key (it has 3 hex digits; a key is 64 hex digits); {how}")),
        (format!("server_host: h\nserver_pub_key: '02{:062}'", 0), format!("client_config.yaml:2:1: server_pub_key: this is not a public key (these 64 hex digits are not an Ed25519 public key; copy it again); {how}")),
        (own, format!("client_config.yaml:3:1: server_pub_key: this is the public key of this client, not of the server; {how}")),
        (format!("{head}identity_private_key_hex: 5"), "client_config.yaml:3:27: identity_private_key_hex: expected text in quotes".into()),
        (format!("{head}tunnel: []"), "client_config.yaml:3:1: unknown key `tunnel`; did you mean `tunnels`? Known here: `server_host`, `server_port`, `server_pub_key`, `identity_private_key_hex`, `tunnels`, `compression`, `memory_budget`, `limits`, `timeouts`, `grace`, `logging`, `local_listener`, `local_listen`, `remote_server`, `tls`, `preconnected`, `forwards`".into()),
        (format!("{head}tunnels: [{{id: a, remoteport: 1}}]"), "client_config.yaml:3:19: tunnels[0]: unknown key `remoteport`; did you mean `remote_port`? Known here: `id`, `remote_port`, `local_host`, `local_port`, `auto_start`, `compression`".into()),
        (format!("{head}{at_tunnel}, {{id: b, remote_port: 2, local_port: 70000}}]"), "client_config.yaml:3:105: tunnels[1].local_port: expected a port from 1 to 65535, found the number 70000".into()),
        (format!("{head}{at_tunnel}, {{remote_port: 2, local_port: 2}}]"), "client_config.yaml:3:69: tunnels[1].id: the key is missing; give the tunnel a name".into()),
        (format!("{head}{at_tunnel}, {{id: ' ', remote_port: 2, local_port: 2}}]"), "client_config.yaml:3:70: tunnels[1].id: it is empty; give the tunnel a name".into()),
        (format!("{head}{at_tunnel}, {{id: {long}, remote_port: 2, local_port: 2}}]"), "client_config.yaml:3:70: tunnels[1].id: it has 256 bytes; a tunnel id has at most 255".into()),
        (format!("{head}{at_tunnel}, {{id: \"b\\e[2J\", remote_port: 2, local_port: 2}}]"), "client_config.yaml:3:70: tunnels[1].id: it holds control characters; use letters, digits and the like".into()),
        (format!("{head}{at_tunnel}, {{id: a, remote_port: 2, local_port: 2}}]"), "client_config.yaml:3:70: tunnels[1].id: \"a\" is the id of tunnels[0] already; every tunnel needs its own".into()),
        (format!("{head}{at_tunnel}, {{id: 80, remote_port: 2, local_port: 2}}]"), "client_config.yaml:3:74: tunnels[1].id: expected text, found the number 80; put it in quotes".into()),
        (format!("{head}{at_tunnel}, {{id: b, local_port: 2}}]"), "client_config.yaml:3:69: tunnels[1].remote_port: the key is missing; write the port that the server is to open".into()),
        (format!("{head}{at_tunnel}, {{id: b, remote_port: 2}}]"), "client_config.yaml:3:69: tunnels[1].local_port: the key is missing; write the port of the local service".into()),
        (
            format!("{head}{at_tunnel}, {{id: b, remote_port: 1, local_port: 2, auto_start: true}}]"),
            "client_config.yaml:3:77: tunnels[1].remote_port: port 1 is the remote_port of tunnels[0] already and both have `auto_start: true`; the server can open it only once".into(),
        ),
        (format!("{head}{at_tunnel}, {{id: b, remote_port: 2, local_port: 2, local_host: 256.0.0.1}}]"), "client_config.yaml:3:108: tunnels[1].local_host: this is not an IPv4 address; it needs four numbers from 0 to 255".into()),
        (format!("{head}{at_tunnel}, {{id: b, remote_port: 2, local_port: 2, auto_start: maybe}}]"), "client_config.yaml:3:120: tunnels[1].auto_start: expected true or false, found the text \"maybe\"".into()),
        (format!("{head}tunnels: {{id: a}}"), "client_config.yaml:3:10: tunnels: expected a list, found a group of keys".into()),
        (format!("{head}limits: {{pairs: 0}}"), "client_config.yaml:3:17: limits.pairs: expected a whole number from 1 to 1000000, found the number 0".into()),
        (format!("{head}memory_budget: 64 TB"), "client_config.yaml:3:16: memory_budget: expected a size from 1 MiB to 1024 GiB, such as \"64 MiB\" or 67108864, found the text \"64 TB\"".into()),
        (format!("{head}limits: {{spare_channels: 65536}}"), "client_config.yaml:3:26: limits.spare_channels: expected a whole number from 0 to 65535, found the number 65536".into()),
        (
            format!("{head}limits: {{spare_channels: 3, max_spare_channels: 2}}"),
            "client_config.yaml:3:29: limits.max_spare_channels: 2 is less than limits.spare_channels (3), which are always kept; raise the one or lower the other".into(),
        ),
        (format!("{head}timeouts: {{connect: 0}}"), "client_config.yaml:3:21: timeouts.connect: expected a number of seconds from 0.001 to 31536000, found the number 0".into()),
        (
            format!("{head}timeouts: {{heartbeat_interval: 90}}"),
            "client_config.yaml:3:12: timeouts.heartbeat_interval: 90 s is too long: a server drops a session that is silent for 90 s; use less than 90, 30 is usual".into(),
        ),
        (
            format!("{head}timeouts: {{backoff_min: 31}}"),
            "client_config.yaml:3:12: timeouts.backoff_min: backoff_min (31 s) is longer than backoff_max (30 s); the waits grow from the first to the second".into(),
        ),
        (
            format!("{head}timeouts: {{backoff_max: 0.5}}"),
            "client_config.yaml:3:12: timeouts.backoff_max: backoff_min (1 s) is longer than backoff_max (0.5 s); the waits grow from the first to the second".into(),
        ),
    ];
    assert_eq!(cases.len(), 32);
    let mut wrong = Vec::new();
    for (text, message) in cases {
        let said = match check_text(YAML, &text, Pinning::Required) {
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
fn all_problems_are_said_at_once() {
    let error = check_text(YAML, "tunnels:\n- id: a\n- {}\n", Pinning::Required).unwrap_err();
    assert_eq!(
        error
            .to_string()
            .lines()
            .map(|line| line.split(": ").nth(1).unwrap())
            .collect::<Vec<_>>(),
        [
            "server_host",
            "server_pub_key",
            "tunnels[0].remote_port",
            "tunnels[0].local_port",
            "tunnels[1].id",
            "tunnels[1].remote_port",
            "tunnels[1].local_port"
        ]
    );
}

#[test]
fn oddities_are_warned_about() {
    let head = format!("server_host: h\nserver_pub_key: {PIN}\n");
    let tunnel = "tunnels: [{id: a, remote_port: 1, local_port: 1, auto_start: true}";
    let cases = [
        (
            "".to_owned(),
            "client_config.yaml: tunnels: there are no tunnels, so the client connects and offers nothing; add one to `tunnels`",
        ),
        (
            "tunnels: [{id: a, remote_port: 1, local_port: 1}]".into(),
            "client_config.yaml:3:1: tunnels: no tunnel has `auto_start: true`, so none is opened",
        ),
        (
            format!("{tunnel}, {{id: b, remote_port: 0, local_port: 1}}]"),
            "client_config.yaml:3:77: tunnels[1].remote_port: port 0 lets the server choose another port at every connection",
        ),
        (
            format!("{tunnel}, {{id: b, remote_port: 1, local_port: 1}}]"),
            "client_config.yaml:3:77: tunnels[1].remote_port: port 1 is the remote_port of tunnels[0] too; only one of them can be open at a time",
        ),
        (
            format!("timeouts: {{heartbeat_timeout: 61}}\n{tunnel}]"),
            "client_config.yaml:3:12: timeouts.heartbeat_timeout: with heartbeat_interval a dead server is noticed only after 91 s; 45 s is usual",
        ),
    ];
    for (text, warning) in cases {
        let checked = check_text(YAML, &format!("{head}{text}"), Pinning::Required).unwrap();
        assert_eq!(checked.warnings, [warning], "{text}");
    }
}

#[test]
fn a_missing_file_comes_with_an_example_that_loads() {
    let dir = Scratch::new();
    for name in [JSON, YAML] {
        let path = dir.path().join(name);
        for error in [
            load(&path, Pinning::Required).map(|_| ()).unwrap_err(),
            ensure_identity_key(&path).map(|_| ()).unwrap_err(),
        ] {
            assert_eq!(error.code(), Code::CONFIG_UNREADABLE);
            let text = error.to_string();
            let (message, example) = text.split_once('\n').unwrap();
            assert_eq!(
                message,
                format!(
                    "the configuration file {} does not exist; `minitcptunnel-client keygen` creates one with a new key, or write one like this:",
                    path.display()
                )
            );
            let filled = example.replace("<SERVER_PUBLIC_KEY_HEX>", PIN);
            assert!(
                check_text(name, &filled, Pinning::Required)
                    .unwrap()
                    .warnings
                    .is_empty()
            );
        }
    }
    assert!(
        dir.names().is_empty(),
        "nothing is made without being asked"
    );
}

#[test]
fn keygen_creates_a_file_that_check_will_not_pass_yet() {
    let dir = Scratch::new();
    for name in [JSON, YAML] {
        let path = dir.path().join(name);
        let key = keygen(&path).unwrap();
        assert_eq!(identity_key(&path).unwrap().key.public(), key.public());
        let error = load(&path, Pinning::Required).unwrap_err().to_string();
        assert!(
            error.contains("server_pub_key: this is not a public key"),
            "{error}"
        );
        let before = fs::read(&path).unwrap();
        let error = keygen(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{}: identity_private_key_hex: there is a key already and it is not replaced; \
                 `minitcptunnel-client pubkey` prints its public half",
                path.display()
            )
        );
        assert_eq!(fs::read(&path).unwrap(), before);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }
}

#[test]
fn a_made_key_changes_nothing_else_in_the_file() {
    let dir = Scratch::new();
    let path = dir.path().join(JSON);
    fs::write(&path, GUIDE).unwrap();
    let made = ensure_identity_key(&path).unwrap();
    assert_eq!(made.origin, KeyOrigin::Created);
    let text = fs::read_to_string(&path).unwrap();
    let line = format!(
        "  \"identity_private_key_hex\": \"{}\",\n",
        *made.key.seed_hex()
    );
    assert!(text.contains(&line), "{text}");
    assert_eq!(text.replace(&line, ""), GUIDE);
    let again = ensure_identity_key(&path).unwrap();
    assert_eq!(
        (again.origin, again.key.public()),
        (KeyOrigin::Existing, made.key.public())
    );
    assert_eq!(again.warning, None);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    let yaml = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/examples/full")
        .join(YAML);
    let old = fs::read_to_string(&yaml).unwrap();
    let path = dir.path().join(YAML);
    fs::write(&path, &old).unwrap();
    let made = ensure_identity_key(&path).unwrap();
    let new = fs::read_to_string(&path).unwrap();
    assert_eq!(
        new.replace(&format!(" \"{}\"", *made.key.seed_hex()), ""),
        old
    );
    assert_eq!(
        reverse_of(load(&path, Pinning::Required).unwrap())
            .identity
            .unwrap()
            .public(),
        made.key.public()
    );
    assert_eq!(dir.names(), [JSON, YAML]);
}

#[test]
fn spares_are_as_many_as_said_and_the_maximum_follows() {
    let limits = |typed: &str| {
        let text = GUIDE.replace("<SERVER_PUBLIC_KEY_HEX>", PIN).replace(
            "\"tunnels\"",
            &format!("\"limits\": {{{typed}}},\n  \"tunnels\""),
        );
        let limits = check_text(JSON, &text, Pinning::Required)
            .unwrap()
            .config
            .limits;
        (limits.spare_channels, limits.max_spare_channels)
    };
    assert_eq!(limits(""), (2, 64));
    assert_eq!(limits("\"spare_channels\": 0"), (0, 64));
    assert_eq!(limits("\"spare_channels\": 100"), (100, 100));
    assert_eq!(
        limits("\"spare_channels\": 3, \"max_spare_channels\": 3"),
        (3, 3)
    );
}

#[test]
fn spares_leave_descriptors_for_connections() {
    let typed = |keep, max| RawLimits {
        pairs: None,
        spare_channels: keep,
        max_spare_channels: max,
        connections: None,
    };
    let count = |n| Some(CountOrNone(n));
    for (raw, files, wanted, warned) in [
        (typed(None, None), Some(1024), (2, 64), vec![]),
        (typed(None, count(256)), Some(1024), (2, 256), vec![]),
        (typed(None, count(1000)), None, (2, 1000), vec![]),
        (
            typed(None, count(1000)),
            Some(1024),
            (2, 256),
            vec!["limits.max_spare_channels: 1000 is more than a quarter of the 1024 open files"],
        ),
        (
            typed(count(300), None),
            Some(1024),
            (256, 256),
            vec!["limits.spare_channels: 300 is more than"],
        ),
        // Nobody has asked for these: nothing is to be done about them.
        (typed(None, None), Some(100), (2, 25), vec![]),
    ] {
        let mut checker = Checker::new(Places::default());
        let limits = limits(&mut checker, &raw, files);
        assert_eq!((limits.spare_channels, limits.max_spare_channels), wanted);
        let said = checker.finish().unwrap();
        assert_eq!(said.len(), warned.len(), "{said:?}");
        for (said, wanted) in said.iter().zip(warned) {
            assert!(said.starts_with(wanted), "{said}");
        }
    }
}

#[test]
fn a_broken_key_is_never_replaced() {
    let dir = Scratch::new();
    let path = dir.path().join(JSON);
    let text = GUIDE.replace(
        "\"tunnels\"",
        &format!(
            "\"identity_private_key_hex\": \"{}\",\n  \"tunnels\"",
            &SEED[..63]
        ),
    );
    fs::write(&path, &text).unwrap();
    for error in [
        ensure_identity_key(&path).map(|_| ()).unwrap_err(),
        keygen(&path).map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(
            error.to_string(),
            format!(
                "{}: identity_private_key_hex: the key is damaged: it has 63 hex digits; a key is 64 hex digits. It is \
                 left as it is: restore it, or remove the key to get a new identity (the server must then be given the \
                 new public key)",
                path.display()
            )
        );
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    assert_eq!(identity_key(&path).unwrap_err().code(), Code::KEY_DAMAGED);
    fs::write(&path, GUIDE).unwrap();
    assert_eq!(
        identity_key(&path).unwrap_err().to_string(),
        format!(
            "{}: identity_private_key_hex: there is no key yet; `minitcptunnel-client keygen` makes one",
            path.display()
        )
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), GUIDE);
}

#[cfg(unix)]
#[test]
fn a_key_that_others_may_read_is_warned_about() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Scratch::new();
    let path = dir.path().join(JSON);
    keygen(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let warning = ensure_identity_key(&path).unwrap().warning.unwrap();
    assert!(
        warning.ends_with(&format!("(mode 644); run: chmod 600 {}", path.display())),
        "{warning}"
    );
}

#[test]
fn keygen_makes_no_file_where_something_else_is() {
    let dir = Scratch::new();
    let path = dir.path().join(JSON);
    fs::create_dir(&path).unwrap();
    assert_eq!(
        keygen(&path).unwrap_err().to_string(),
        format!(
            "the configuration file cannot be used: {} is not an ordinary file",
            path.display()
        )
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_takes_no_file_is_told_clearly() {
    // /proc takes no new files from anybody, root included.
    let message = keygen(Path::new("/proc/client_config.json"))
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with(
            "the new identity key could not be saved: cannot write /proc/client_config.json: "
        ),
        "{message}"
    );
    assert!(
        message.ends_with("or run `minitcptunnel-client keygen` on a copy elsewhere"),
        "{message}"
    );
}

mod forward;
