use super::*;
use minitcptunnel_common::pki::MinVersion;

/// The least that one forward needs.
const LEAST: &str = "local_listener: {port: 1080}\n\
                     remote_server: {host: srv, port: 8443, server_ca_cert: ca.crt}\n";

fn checked(text: &str) -> Checked {
    check_text(YAML, text, Pinning::Required).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

fn here(name: &str) -> PathBuf {
    std::env::current_dir().unwrap().join(name)
}

#[test]
fn the_example_means_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/examples/forward")
        .join(YAML);
    // As Windows writes it when it is made absolute.
    let folder = std::path::absolute(path.parent().unwrap()).unwrap();
    let folder = folder.as_path();
    let config = load(&path, Pinning::Required).unwrap().config;
    assert!(config.reverse.is_none());
    let expected = Forward {
        name: "default".into(),
        listen: "127.0.0.1:1080".parse().unwrap(),
        servers: config.forwards[0].servers.clone(),
        server_ca: folder.join("certs/ca.crt"),
        server_hostname: Some("tunnel-server".parse().unwrap()),
        identity: Some(ClientCert {
            cert: folder.join("certs/client.crt"),
            key: folder.join("certs/client.key"),
        }),
        min_version: MinVersion::Tls12,
        preconnected: 0,
        connections: Count::MOST,
        timeouts: ForwardTimeouts::default(),
    };
    assert_eq!(config.forwards, [expected]);
    assert_eq!(
        config.forwards[0].servers[0].to_string(),
        "tunnel-server:8443"
    );
    assert_eq!(config.logging.file, Some(folder.join("logs/client.log")));
    assert_eq!(
        config.forwards[0].to_string(),
        format!(
            "Forward \"default\": 127.0.0.1:1080 leads to tunnel-server:8443 over TLS 1.2 or newer, if {} vouches for \
             it; shows the certificate {}; keeps no connections ready.",
            folder.join("certs/ca.crt").display(),
            folder.join("certs/client.crt").display()
        )
    );
}

/// Whoever takes the comment signs away gets what the comments promise.
#[test]
fn the_example_s_comments_are_right_too() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/examples/forward")
        .join(YAML);
    let text = fs::read_to_string(path).unwrap();
    let (head, list) = text.split_once("# forwards:").expect("the list");
    let list = list.replace("\n#", "\n");
    let head = head.replace("  # fallbacks:", "  fallbacks:");
    let config = checked(&format!("{head}forwards:{list}")).config;
    let [first, web] = &config.forwards[..] else {
        panic!("two forwards: {:?}", config.forwards);
    };
    assert_eq!(first.servers[1].to_string(), "tunnel-server-2:8443");
    assert_eq!((web.name.as_str(), web.listen.port()), ("web", 1081));
    assert_eq!(web.identity, first.identity);
}

#[test]
fn the_least_gets_the_defaults() {
    let Checked { config, warnings } = checked(LEAST);
    assert!(warnings.is_empty(), "{warnings:?}");
    let forward = &config.forwards[0];
    assert_eq!(forward.listen, "127.0.0.1:1080".parse().unwrap());
    assert_eq!(forward.server_ca, here("ca.crt"));
    assert_eq!(forward.identity, None);
    assert_eq!(forward.preconnected, 0);
    assert_eq!(forward.timeouts, ForwardTimeouts::default());
    assert_eq!(forward.name_of(&forward.servers[0]).as_str(), "srv");
    // The short name of the listener, as some have it.
    let short = checked(&LEAST.replace("local_listener", "local_listen")).config;
    assert_eq!(short.forwards, config.forwards);
}

#[test]
fn the_keys_tell_which_jobs_run() {
    let reverse = format!("server_host: h\nserver_pub_key: {PIN}\ntunnels: []\n");
    let cases = [
        (reverse.clone(), true, 0),
        (format!("{reverse}forwards: []"), true, 0),
        (LEAST.to_owned(), false, 1),
        (format!("{LEAST}identity_private_key_hex: {SEED}"), false, 1),
        (format!("{LEAST}memory_budget: 64 MiB"), false, 1),
        (format!("{LEAST}{reverse}"), true, 1),
    ];
    for (text, reverse, forwards) in cases {
        let config = checked(&text).config;
        assert_eq!(
            (config.reverse.is_some(), config.forwards.len()),
            (reverse, forwards),
            "{text}"
        );
    }
    // Neither: what the reverse job needs is asked for, as ever. One of its keys is enough for that.
    for text in ["grace: 1".to_owned(), format!("{LEAST}server_port: 9000")] {
        let error = check_text(YAML, &text, Pinning::Required).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("server_host: the key is missing"),
            "{error}"
        );
    }
}

#[test]
fn several_forwards_share_what_stands_at_the_top() {
    let config = checked(
        "tls: {client_cert: c.crt, client_key: c.key, min_version: 1.3, handshake_timeout: 3}\n\
         preconnected: 5\n\
         limits: {connections: 100}\n\
         timeouts: {connect: 2, handshake: 4, retry_within: 0, backoff_max: 0.1}\n\
         forwards:\n\
         - name: db\n  \
           local_listener: {port: 1}\n  \
           remote_server: {host: a, port: 8443, server_ca_cert: ca.crt, fallbacks: [{host: b}, {host: c, port: 9}]}\n\
         - name: web\n  \
           local_listen: {host: 0.0.0.0, port: 2}\n  \
           remote_server: {host: a, port: 8444, server_ca_cert: /etc/ca.crt, server_hostname: ' '}\n  \
           tls: {client_cert: '', client_key: ''}\n  \
           preconnected: 0\n  \
           limits: {connections: 7}\n  \
           timeouts: {idle: 600, write: 60, retry_within: 5, backoff_min: 1, backoff_max: 2}\n",
    )
    .config;
    assert!(config.reverse.is_none());
    let [db, web] = config.forwards.as_slice() else {
        panic!("{:?}", config.forwards)
    };
    let servers: Vec<String> = db.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["a:8443", "b:8443", "c:9"]);
    assert_eq!(db.name_of(&db.servers[1]).as_str(), "b");
    assert_eq!(db.identity.as_ref().unwrap().cert, here("c.crt"));
    assert_eq!(
        (db.min_version, web.min_version),
        (MinVersion::Tls13, MinVersion::Tls13)
    );
    assert_eq!((db.preconnected, web.preconnected), (5, 0));
    assert_eq!((db.connections, web.connections), (100, 7));
    assert_eq!((&web.identity, &web.server_hostname), (&None, &None));
    let ms = Duration::from_millis;
    assert_eq!(
        db.timeouts,
        ForwardTimeouts {
            connect: ms(2000),
            handshake: ms(3000),
            retry_within: ms(0),
            write: None,
            idle: None,
            // Not longer than what was typed.
            backoff_min: ms(100),
            backoff_max: ms(100),
        }
    );
    assert_eq!(
        web.timeouts,
        ForwardTimeouts {
            connect: ms(2000),
            handshake: ms(3000),
            retry_within: ms(5000),
            write: Some(ms(60_000)),
            idle: Some(ms(600_000)),
            backoff_min: ms(1000),
            backoff_max: ms(2000),
        }
    );
}

#[test]
fn a_tls_section_of_a_forward_changes_only_what_it_says() {
    let own_cert = |name: &str| format!("shows the certificate {};", here(name).display());
    for (own, version, shown) in [
        ("", MinVersion::Tls13, own_cert("c.crt")),
        ("min_version: 1.2", MinVersion::Tls12, own_cert("c.crt")),
        (
            "handshake_timeout: 3, client_key: ",
            MinVersion::Tls13,
            own_cert("c.crt"),
        ),
        (
            "client_cert: w.crt, client_key: w.key",
            MinVersion::Tls13,
            own_cert("w.crt"),
        ),
        (
            "client_cert: '', client_key: ''",
            MinVersion::Tls13,
            "shows no certificate;".to_owned(),
        ),
    ] {
        let text = format!(
            "tls: {{client_cert: c.crt, client_key: c.key, min_version: 1.3, handshake_timeout: 3}}\nforwards:\n\
             - name: db\n  local_listener: {{port: 1}}\n  \
             remote_server: {{host: a, port: 2, server_ca_cert: ca.crt}}\n  tls: {{{own}}}\n"
        );
        let config = checked(&text).config;
        let forward = &config.forwards[0];
        let said = forward.to_string();
        assert!(said.contains(&shown), "{text}\n{said}");
        assert_eq!(forward.min_version, version, "{text}");
        assert_eq!(forward.timeouts.handshake, Duration::from_secs(3), "{text}");
    }
}

/// A port that others reach is a way in for them, too.
#[test]
fn a_listener_for_other_machines_is_warned_about() {
    let tls = "tls: {client_cert: c.crt, client_key: c.key}\n";
    for (host, open) in [
        ("127.0.0.1", false),
        ("127.1.2.3", false),
        ("localhost", false),
        ("'::1'", false),
        ("'::ffff:127.0.0.1'", false),
        ("0.0.0.0", true),
        ("'::'", true),
        ("192.0.2.1", true),
    ] {
        let listener = format!("{{host: {host}, port: 1080}}");
        for (key, tls, as_whom) in [
            ("local_listener", tls, " under this client's certificate"),
            ("local_listen", "", ""),
        ] {
            let text = LEAST
                .replace("local_listener", key)
                .replace("{port: 1080}", &listener);
            let warnings = checked(&format!("{text}{tls}")).warnings;
            let column = key.len() + 4;
            let expected = format!(
                "client_config.yaml:1:{column}: {key}.host: other machines can reach this port, and whoever does reaches \
                 the service behind the tunnel{as_whom}; leave it at 127.0.0.1 unless they shall"
            );
            let expected = if open { vec![expected] } else { vec![] };
            assert_eq!(warnings, expected, "{host}");
        }
    }
}

#[test]
fn mistakes_in_forwards_are_told_exactly() {
    let list = |entry: &str| format!("forwards:\n- {entry}\n");
    let entry = "local_listener: {port: 1}\n  remote_server: {host: h, port: 2, server_ca_cert: c}";
    let cases: Vec<(String, &[&str])> = vec![
        (
            "preconnected: 1".into(),
            &[
                "client_config.yaml: local_listener.port: the key is missing; write the port to listen on",
                "client_config.yaml: remote_server.host: the key is missing; write the host name or IP address of the server",
                "client_config.yaml: remote_server.port: the key is missing; write the port of the server",
                "client_config.yaml: remote_server.server_ca_cert: no file is named; name the PEM file with the certificate of the CA that signed the server's",
            ],
        ),
        (
            LEAST.replace("ca.crt", "''"),
            &[
                "client_config.yaml:2:40: remote_server.server_ca_cert: no file is named; name the PEM file with the certificate of the CA that signed the server's",
            ],
        ),
        (
            LEAST.replace("ca.crt", "ca.crt, server_hostname: 'h:1'"),
            &[
                "client_config.yaml:2:64: remote_server.server_hostname: write the host alone; the port has a key of its own",
            ],
        ),
        (
            format!("{LEAST}tls: {{client_cert: c}}"),
            &[
                "client_config.yaml:3:1: tls.client_key: no file is named, but client_cert is; a certificate and its key go together",
            ],
        ),
        (
            format!("{LEAST}tls: {{client_key: k, client_cert: ' '}}"),
            &[
                "client_config.yaml:3:22: tls.client_cert: no file is named, but client_key is; a certificate and its key go together",
            ],
        ),
        (
            format!("{LEAST}local_listen: {{port: 2}}"),
            &[
                "client_config.yaml:3:1: local_listen: this is another name of local_listener, which is there as well; take one of them out",
            ],
        ),
        (
            format!("{LEAST}tls: {{min_version: TLSv1}}"),
            &[
                "client_config.yaml:3:20: tls.min_version: expected \"1.2\" or \"1.3\", found the text \"TLSv1\"",
            ],
        ),
        (
            list(entry),
            &[
                "client_config.yaml:2:3: forwards[0].name: the key is missing; give the forward a name",
            ],
        ),
        (
            list(&format!("name: a\n  {entry}\n- name: b\n  {entry}")),
            &[
                "client_config.yaml:6:20: forwards[1].local_listener.port: 127.0.0.1:1 is taken by forward \"a\"; every listener needs a port of its own",
            ],
        ),
        (
            list(&format!(
                "name: a\n  {entry}\n  timeouts: {{backoff_min: 9, backoff_max: 3}}"
            )),
            &[
                "client_config.yaml:5:14: forwards[0].timeouts.backoff_min: backoff_min (9 s) is longer than backoff_max (3 s); the waits grow from the first to the second",
            ],
        ),
        (
            list(&format!(
                "name: a\n  {entry}\n  timeouts: {{heartbeat_interval: 9}}"
            )),
            &[
                "client_config.yaml:5:14: forwards[0].timeouts: unknown key `heartbeat_interval`. Known here: `connect`, `handshake`, `retry_within`, `write`, `idle`, `backoff_min`, `backoff_max`",
            ],
        ),
        (
            format!("{LEAST}timeouts: {{backoff_min: 9, backoff_max: 3}}"),
            &[
                "client_config.yaml:3:12: timeouts.backoff_min: backoff_min (9 s) is longer than backoff_max (3 s); the waits grow from the first to the second",
            ],
        ),
    ];
    assert_eq!(cases.len(), 12);
    let mut wrong = Vec::new();
    for (text, messages) in cases {
        let said = match check_text(YAML, &text, Pinning::Required) {
            Ok(checked) => format!("{:?}", checked.config),
            Err(e) => e.to_string(),
        };
        let expected = messages.join("\n");
        if said != expected {
            wrong.push(format!("{text}\n  says     {said}\n  expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_client_of_forwards_alone_makes_no_key() {
    let dir = Scratch::new();
    let path = dir.path().join(YAML);
    fs::write(&path, LEAST).unwrap();
    let loaded = crate::cli::load(&path, Pinning::Required);
    let checked = loaded.checked.unwrap();
    assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
    assert_eq!(fs::read_to_string(&path).unwrap(), LEAST);
}
