use super::*;
use minitcptunnel_common::pki::MinVersion;

/// The least that one forward needs.
const LEAST: &str = "server_listener: {port: 8443}\n\
                     target_service: {host: db, port: 5432}\n\
                     tls: {server_cert: s.crt, server_key: s.key, client_ca_cert: ca.crt}\n";

fn checked(text: &str) -> Checked {
    check_text(YAML, text).unwrap_or_else(|e| panic!("{text}\n{e}"))
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
    let config = load(Some(&path), &Overrides::default()).unwrap().config;
    assert!(!config.reverse);
    let expected = Forward {
        name: "default".into(),
        listen: "0.0.0.0:8443".parse().unwrap(),
        targets: config.forwards[0].targets.clone(),
        tls: Tls {
            cert: folder.join("certs/server.crt"),
            key: folder.join("certs/server.key"),
            client_ca: Some(folder.join("certs/ca.crt")),
            allowed_clients: vec!["your.client.id".into()],
            allowed_clients_file: None,
            min_version: MinVersion::Tls12,
            handshake_timeout: Duration::from_secs(10),
        },
        limits: ForwardLimits {
            connections: Count::MOST,
            pending_handshakes: 1024,
            pending_handshakes_per_address: 256,
        },
        timeouts: ForwardTimeouts::default(),
    };
    assert_eq!(config.forwards, [expected]);
    assert_eq!(
        config.forwards[0].targets[0].to_string(),
        "echo-server:8080"
    );
    assert_eq!(config.logging.file, Some(folder.join("logs/server.log")));
    assert_eq!(
        config.forwards[0].to_string(),
        format!(
            "Forward \"default\": takes TLS 1.2 or newer on 0.0.0.0:8443 and leads to echo-server:8080; takes clients \
             whose certificate {} signed, with the name \"your.client.id\".",
            folder.join("certs/ca.crt").display()
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
    assert_eq!(first.targets[1].to_string(), "echo-2:8080");
    assert_eq!((web.name.as_str(), web.listen.port()), ("web", 8444));
    assert_eq!(web.tls, first.tls);
}

#[test]
fn the_least_gets_the_defaults() {
    let Checked { config, warnings } = checked(LEAST);
    assert!(warnings.is_empty(), "{warnings:?}");
    let forward = &config.forwards[0];
    assert_eq!(forward.listen, "[::]:8443".parse().unwrap());
    assert_eq!(forward.tls.cert, here("s.crt"));
    assert_eq!(forward.tls.min_version, MinVersion::Tls12);
    assert_eq!(forward.tls.handshake_timeout, Duration::from_secs(10));
    assert!(forward.tls.allowed_clients.is_empty());
    assert_eq!(forward.timeouts, ForwardTimeouts::default());
}

/// Which jobs run: the keys, and what the command line asks for.
#[test]
fn the_keys_tell_which_jobs_run() {
    let cases = [
        ("", true, 0),
        (
            "grace: 1\ntimeouts: {hello: 3}\nlimits: {pairs: 9}",
            true,
            0,
        ),
        ("forwards: []", true, 0),
        (LEAST, false, 1),
        (
            &format!("{LEAST}memory_budget: 64 MiB\nlogging: {{level: warn}}"),
            false,
            1,
        ),
        (&format!("{LEAST}port: 9000"), true, 1),
        (&format!("{LEAST}allowed_clients_file: a.txt"), true, 1),
    ];
    for (text, reverse, forwards) in cases {
        let config = checked(text).config;
        assert_eq!(
            (config.reverse, config.forwards.len()),
            (reverse, forwards),
            "{text}"
        );
    }
    let loaded = config::parse::<Raw>(Path::new(YAML), LEAST).unwrap();
    let overrides = Overrides {
        port: Some(9000),
        ..Overrides::default()
    };
    let config = check(loaded.raw, loaded.places, &overrides).unwrap().config;
    assert!(config.reverse && config.forwards.len() == 1);
}

#[test]
fn several_forwards_share_what_stands_at_the_top() {
    let config = checked(
        "tls: {server_cert: s.crt, server_key: s.key, client_ca_cert: ca.crt, min_version: TLSv1.3, handshake_timeout: 3}\n\
         limits: {connections: 100, pending_handshakes: 50}\n\
         timeouts: {connect: 2, idle: 600, write: 60}\n\
         forwards:\n\
         - name: db\n  \
           server_listener: {host: 127.0.0.1, port: 1}\n  \
           target_service: {host: db, port: 5432, fallbacks: [{host: db-2}, {host: '::1', port: 5433}]}\n\
         - name: web\n  \
           server_listener: {host: localhost, port: 2}\n  \
           target_service: {host: web, port: 80}\n  \
           tls: {server_cert: w.crt, server_key: w.key}\n  \
           limits: {connections: 7, pending_handshakes_per_address: 8}\n  \
           timeouts: {idle: 0, connect: 1.5}\n",
    )
    .config;
    assert!(!config.reverse);
    let [db, web] = config.forwards.as_slice() else {
        panic!("{:?}", config.forwards)
    };
    assert_eq!((db.name.as_str(), web.name.as_str()), ("db", "web"));
    let targets: Vec<String> = db.targets.iter().map(ToString::to_string).collect();
    assert_eq!(targets, ["db:5432", "db-2:5432", "[::1]:5433"]);
    assert_eq!(db.tls.cert, here("s.crt"));
    assert_eq!(db.tls.min_version, MinVersion::Tls13);
    assert_eq!(db.tls.handshake_timeout, Duration::from_secs(3));
    assert_eq!(web.tls.cert, here("w.crt"));
    assert_eq!(web.tls.min_version, MinVersion::Tls13);
    assert_eq!(web.tls.client_ca, Some(here("ca.crt")));
    assert_eq!(web.listen, "127.0.0.1:2".parse().unwrap());
    let seconds = |s| Some(Duration::from_secs(s));
    assert_eq!(
        (db.timeouts.connect, db.timeouts.idle, db.timeouts.write),
        (Duration::from_secs(2), seconds(600), seconds(60))
    );
    assert_eq!(
        (web.timeouts.connect, web.timeouts.idle, web.timeouts.write),
        (Duration::from_millis(1500), None, seconds(60))
    );
    assert_eq!((db.limits.connections, web.limits.connections), (100, 7));
    assert_eq!(
        (
            web.limits.pending_handshakes,
            web.limits.pending_handshakes_per_address
        ),
        (50, 8)
    );
}

/// Whom a forward lets in, when it says a part of `tls` itself: nothing of the top is lost unless it says so.
#[test]
fn a_tls_section_of_a_forward_changes_only_what_it_says() {
    let top = "server_cert: s.crt, server_key: s.key, min_version: 1.3, handshake_timeout: 3";
    let both = ", client_ca_cert: ca.crt, allowed_client_cns: [a]";
    let file = ", client_ca_cert: ca.crt, allowed_clients_file: list";
    let signed = |ca: &str| {
        format!(
            "takes clients whose certificate {} signed",
            here(ca).display()
        )
    };
    let named = |name: &str| format!("{}, with the name \"{name}\".", signed("ca.crt"));
    let listed = |list: &str| {
        let list = here(list);
        format!(
            "{}, with the name that is in {}.",
            signed("ca.crt"),
            list.display()
        )
    };
    let anybody = || format!("{}.", signed("ca.crt"));
    let nobody_asked = || "takes everybody, no client certificate is asked for.".to_owned();
    let cases = [
        (both, "server_cert: w.crt, server_key: w.key", named("a")),
        (both, "", named("a")),
        (both, "min_version: 1.3", named("a")),
        // No value is not a blank one.
        (both, "client_ca_cert: , allowed_client_cns: ", named("a")),
        (both, "allowed_client_cns: [b]", named("b")),
        (both, "allowed_client_cns: []", anybody()),
        (both, "client_ca_cert: ''", nobody_asked()),
        (
            both,
            "client_ca_cert: w.crt",
            format!("{}, with the name \"a\".", signed("w.crt")),
        ),
        // The two lists are one: a forward that names its clients means no others.
        (both, "allowed_clients_file: own", listed("own")),
        (file, "allowed_client_cns: [b]", named("b")),
        (file, "allowed_client_cns: []", listed("list")),
        (file, "allowed_clients_file: ''", anybody()),
        (file, "client_ca_cert: ' '", nobody_asked()),
        ("", "client_ca_cert: ca.crt", anybody()),
        ("", "min_version: 1.3", nobody_asked()),
    ];
    for (shared, own, expected) in cases {
        let text = format!(
            "tls: {{{top}{shared}}}\nforwards:\n- name: db\n  server_listener: {{port: 1}}\n  \
             target_service: {{host: db, port: 2}}\n  tls: {{{own}}}\n"
        );
        let Checked { config, warnings } = checked(&text);
        let forward = &config.forwards[0];
        let said = forward.to_string();
        assert!(said.ends_with(&format!("; {expected}")), "{text}\n{said}");
        assert_eq!(forward.tls.min_version, MinVersion::Tls13, "{text}");
        assert_eq!(forward.tls.handshake_timeout, Duration::from_secs(3));
        let open = forward.tls.client_ca.is_none();
        assert_eq!(warnings.len(), usize::from(open), "{text}\n{warnings:?}");
        if let [warning] = &warnings[..] {
            assert!(
                warning.contains(": forwards[0].tls.client_ca_cert: no CA is named"),
                "{warning}"
            );
        }
    }
}

#[test]
fn blank_is_no_mtls_and_that_is_warned_about() {
    for blank in ["''", "' '", ""] {
        let text = LEAST.replace("ca.crt", blank);
        let Checked { config, warnings } = checked(&text);
        assert_eq!(config.forwards[0].tls.client_ca, None);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].starts_with("server_config.yaml:3:46: tls.client_ca_cert: no CA is named"),
            "{warnings:?}"
        );
        assert!(config.forwards[0].to_string().contains("takes everybody"));
    }
}

#[test]
fn mistakes_in_forwards_are_told_exactly() {
    let list = |entry: &str| {
        format!("tls: {{server_cert: s, server_key: k, client_ca_cert: c}}\nforwards:\n- {entry}\n")
    };
    let entry = "server_listener: {port: 1}\n  target_service: {host: h, port: 2}";
    let cases: Vec<(String, &[&str])> = vec![
        (
            "tls: {}".into(),
            &[
                "server_config.yaml: server_listener.port: the key is missing; write the port to listen on",
                "server_config.yaml: target_service.host: the key is missing; write the host name or IP address of the target service",
                "server_config.yaml: target_service.port: the key is missing; write the port of the target service",
                "server_config.yaml:1:1: tls.server_cert: no file is named; name the PEM file with the server's certificate",
                "server_config.yaml:1:1: tls.server_key: no file is named; name the PEM file with its secret key",
            ],
        ),
        (
            "server_listener: {port: 1}\ntarget_service: {host: h, port: 2}".into(),
            &[
                "server_config.yaml: tls: the section is missing; it names the server's certificate and key (`server_cert`, `server_key`)",
            ],
        ),
        (
            LEAST.replace("{port: 8443}", "{host: example.org, port: 8443}"),
            &[
                "server_config.yaml:1:19: server_listener.host: \"example.org\" is not an IP address; use \"0.0.0.0\" for all of IPv4, \"::\" for all addresses, or one address of this machine, without a port",
            ],
        ),
        (
            LEAST.replace("5432}", "5432, fallbacks: [{host: h:1}]}"),
            &[
                "server_config.yaml:2:53: target_service.fallbacks[0].host: write the host alone; the port has a key of its own",
            ],
        ),
        (
            LEAST.replace("client_ca_cert: ca.crt", "allowed_client_cns: [a]"),
            &[
                "server_config.yaml:3:46: tls.allowed_client_cns: names are listed, but without client_ca_cert no client shows a certificate, so the list would bar nobody; name the CA, or take the list out",
            ],
        ),
        (
            LEAST.replace("client_ca_cert: ca.crt", "allowed_clients_file: a"),
            &[
                "server_config.yaml:3:46: tls.allowed_clients_file: a list is named, but without client_ca_cert no client shows a certificate, so the list would bar nobody; name the CA, or take the list out",
            ],
        ),
        (
            LEAST.replace("ca.crt", "ca.crt, allowed_client_cns: [a, ' ']"),
            &[
                "server_config.yaml:3:94: tls.allowed_client_cns[1]: the name is empty; no certificate has such a name, take the line out",
            ],
        ),
        (
            LEAST.replace("ca.crt", "ca.crt, min_version: 1.1"),
            &[
                "server_config.yaml:3:83: tls.min_version: expected \"1.2\" or \"1.3\", found the number 1.1",
            ],
        ),
        (
            format!("{LEAST}port: 8443"),
            &[
                "server_config.yaml:1:19: server_listener.port: [::]:8443 is taken by the control port of the reverse tunnel; every listener needs a port of its own",
            ],
        ),
        (
            list(entry),
            &[
                "server_config.yaml:3:3: forwards[0].name: the key is missing; give the forward a name",
            ],
        ),
        (
            list(&format!(
                "name: a\n  {entry}\n- name: a\n  {}",
                entry.replace('1', "3")
            )),
            &[
                "server_config.yaml:6:3: forwards[1].name: \"a\" is the name of another forward already; every forward needs its own",
            ],
        ),
        (
            list(&format!("name: a\n  {entry}\n- name: b\n  {entry}")),
            &[
                "server_config.yaml:7:21: forwards[1].server_listener.port: [::]:1 is taken by forward \"a\"; every listener needs a port of its own",
            ],
        ),
        (
            list(&format!("name: a\n  {entry}\n  port: 3")),
            &[
                "server_config.yaml:6:3: forwards[0]: unknown key `port`. Known here: `name`, `server_listener`, `target_service`, `tls`, `limits`, `timeouts`",
            ],
        ),
        (
            list(&format!("name: a\n  {entry}\n  timeouts: {{hello: 3}}")),
            &[
                "server_config.yaml:6:14: forwards[0].timeouts: unknown key `hello`. Known here: `connect`, `write`, `idle`",
            ],
        ),
        // What stands at the top is wrong there, and once.
        (
            format!(
                "tls: {{server_cert: s, server_key: k, client_ca_cert: c, allowed_client_cns: ['']}}\nforwards:\n\
                 - name: a\n  {entry}\n- name: b\n  {}\n  tls: {{min_version: 1.3}}",
                entry.replace('1', "3")
            ),
            &[
                "server_config.yaml:1:78: tls.allowed_client_cns[0]: the name is empty; no certificate has such a name, take the line out",
            ],
        ),
        (
            format!(
                "tls: {{client_ca_cert: c, server_cert: s}}\nforwards:\n- name: a\n  {entry}\n  tls: {{server_cert: s}}"
            ),
            &[
                "server_config.yaml:6:3: forwards[0].tls.server_key: no file is named; name the PEM file with its secret key",
            ],
        ),
        (
            list(&format!(
                "name: a\n  {entry}\n  tls: {{client_ca_cert: '', allowed_client_cns: [a]}}"
            )),
            &[
                "server_config.yaml:6:29: forwards[0].tls.allowed_client_cns: names are listed, but without client_ca_cert no client shows a certificate, so the list would bar nobody; name the CA, or take the list out",
            ],
        ),
    ];
    assert_eq!(cases.len(), 17);
    let mut wrong = Vec::new();
    for (text, messages) in cases {
        let said = match check_text(YAML, &text) {
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
