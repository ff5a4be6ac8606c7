use super::*;
use crate::scratch::Scratch;
use serde::Deserialize;
use std::fs;

/// A schema that is like those of the programs.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Sample {
    name: Option<String>,
    on: Option<bool>,
    compression: Option<CompressionSetting>,
    wait: Option<Seconds>,
    grace: Option<Grace>,
    ports: Option<PortSet>,
    inner: Option<Inner>,
    list: Option<Vec<Inner>>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Inner {
    port: Option<Port>,
    count: Option<Count>,
    host: Option<String>,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only printed")]
struct WithSecret {
    secret: Secret,
}

fn json(text: &str) -> Result<Sample, ConfigError> {
    parse(Path::new("a.json"), text).map(|loaded| loaded.raw)
}

fn yaml(text: &str) -> Result<Sample, ConfigError> {
    parse(Path::new("a.yaml"), text).map(|loaded| loaded.raw)
}

#[test]
fn both_formats_mean_the_same() {
    let from_json = json(
        "\u{feff}{\"name\": \"\\u00fc\\ud83d\\ude00 \\\"}\", \"on\": true, \"compression\": \"off\", \"wait\": 0.5,\r\n\
         \t\"grace\": 0, \"ports\": [80, \"90-91\"], \"inner\": {\"port\": 1, \"count\": 1000000, \"host\": null},\r\n\
         \"list\": [{}, {\"port\": 65535}]}\n",
    )
    .unwrap();
    let from_yaml = yaml(
        "\u{feff}# a comment\nname: 'ü😀 \"}'\non: yes\ncompression: off\nwait: .5\ngrace: 0\nports:\n  - 80\n  - 90-91\n\
         inner: &i\n  port: 1\n  count: 1000000\n  host: ~\nlist:\n- {}\n- port: 65535\n",
    )
    .unwrap();
    assert_eq!(from_json, from_yaml);
    assert_eq!(from_json.name.as_deref(), Some("ü😀 \"}"));
    assert_eq!(from_json.compression, Some(CompressionSetting::Off));
    assert_eq!(
        from_json.wait.unwrap().duration(),
        std::time::Duration::from_millis(500)
    );
    assert_eq!(yaml("").unwrap(), Sample::default());
    assert_eq!(yaml("# nothing\n").unwrap(), json("{}").unwrap());
    for (text, setting) in [
        ("on", CompressionSetting::On),
        ("'on'", CompressionSetting::On),
        ("auto", CompressionSetting::Auto),
    ] {
        assert_eq!(
            yaml(&format!("compression: {text}")).unwrap().compression,
            Some(setting)
        );
    }
}

#[test]
fn broken_texts_are_told_exactly() {
    let known =
        "Known here: `name`, `on`, `compression`, `wait`, `grace`, `ports`, `inner`, `list`";
    let twice = "only one can be meant, remove the other";
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let cases: Vec<(&str, &str, String)> = vec![
        ("a.json", " \n", "a.json: the file is empty; the least that JSON needs is {}".into()),
        ("a.json", "{", "a.json:1:1: this is not valid JSON: EOF while parsing an object; the file ends too early, a bracket or quote may be missing".into()),
        ("a.json", "{\"name\": \"x}", "a.json:1:12: this is not valid JSON: EOF while parsing a string; the file ends too early, a bracket or quote may be missing".into()),
        ("a.json", "{\"on\": true,}", "a.json:1:13: this is not valid JSON: a comma before a closing bracket; remove it".into()),
        ("a.json", "{\"on\": true\n\"wait\": 1}", "a.json:2:1: this is not valid JSON: expected `,` or `}`; a comma may be missing".into()),
        ("a.json", "{on: true}", "a.json:1:2: this is not valid JSON: key must be a string; write keys in double quotes (JSON has no comments; a .yaml file does)".into()),
        ("a.json", "{\"name\": me}", "a.json:1:10: this is not valid JSON: expected value; is a text without its quotes? (JSON has no comments; a .yaml file does)".into()),
        ("a.json", "# hi\n{}", "a.json:1:1: this is not valid JSON: expected value; is a text without its quotes? (JSON has no comments; a .yaml file does)".into()),
        ("a.json", "{} {}", "a.json:1:4: this is not valid JSON: trailing characters".into()),
        ("a.json", &deep, "a.json:1:33: there are more than 32 levels of brackets; nothing here needs so many".into()),
        ("a.json", "{\"name\": \"\\ud800\"}", "a.json:1:10: name: this is not valid JSON: unexpected end of hex escape".into()),
        ("a.json", "{\"inner\": {\"port\": 1,\n \"port\": 1}}", format!("a.json:2:2: inner: the key `port` appears twice (first on line 1); {twice}")),
        ("a.json", "{\"list\": [{}, {\"port\": 1, \"p\\u006frt\": 1}]}", format!("a.json:1:27: list[1]: the key `port` appears twice (first on line 1); {twice}")),
        ("a.yaml", "on: yes\nname: a\non: no\n", format!("a.yaml:3:1: the key `on` appears twice (first on line 1); {twice}")),
        ("a.yaml", "list:\n- port: 1\n  port: 2\n", format!("a.yaml:3:3: the key `port` appears twice (first on line 2); {twice}")),
        ("a.yaml", "on: yes\n---\non: no\n", "a.yaml:2:1: the file holds several YAML documents (`---`); only one can be meant, remove the others".into()),
        ("a.yaml", "a: b: c", "a.yaml:1:5: this is not valid YAML: mapping values are not allowed in this context".into()),
        ("a.yaml", "name: \"x", "a.yaml:1:7: this is not valid YAML: unclosed quote".into()),
        ("a.yaml", "- 1\n- 2\n", "a.yaml:1:1: the file must hold keys and values at its top level".into()),
        ("a.yaml", "nmae: x", format!("a.yaml:1:1: unknown key `nmae`; did you mean `name`? {known}")),
        ("a.yaml", "na\u{7}me: x", "a.yaml:1:1: this is not valid YAML: unexpected character: `\\u{7}'".into()),
        ("a.json", "{\"b\\u001b[2J\": 1}", format!("a.json:1:2: unknown key `b\\u{{1b}}[2J`. {known}")),
        ("a.json", "{\"inner\": {\"host\": {\"a\": 1}}}", "a.json:1:20: inner.host: expected text, found a group of keys".into()),
        ("a.json", "{\"on\": \"yes\"}", "a.json:1:8: on: expected true or false, found the text \"yes\"".into()),
        ("a.json", "{\"list\": {\"port\": 1}}", "a.json:1:10: list: expected a list, found a group of keys".into()),
        ("a.json", "{\"list\": [7]}", "a.json:1:11: list[0]: expected a group of keys, found the number 7".into()),
        ("a.json", "{\"list\": [{\"port\": 0}]}", "a.json:1:20: list[0].port: expected a port from 1 to 65535, found the number 0".into()),
        ("a.json", "{\"list\": [{\"port\": null}, {\"port\": 99999999999999999999999}]}", "a.json:1:36: list[1].port: expected a port from 1 to 65535, found the number 99999999999999999999999".into()),
        ("a.json", "{\"wait\": 1e400}", "a.json:1:10: wait: expected a number of seconds from 0.001 to 31536000, found the number inf".into()),
        ("a.yaml", "wait: .inf", "a.yaml:1:7: wait: expected a number of seconds from 0.001 to 31536000, found the number inf".into()),
        ("a.yaml", "wait: .nan", "a.yaml:1:7: wait: expected a number of seconds from 0.001 to 31536000, found the number NaN".into()),
        ("a.txt", "", "a.txt: the format of a configuration file is told by its name; let it end in .json, .yaml or .yml".into()),
        ("json", "", "json: the format of a configuration file is told by its name; let it end in .json, .yaml or .yml".into()),
    ];
    let mut wrong = Vec::new();
    for (name, text, message) in &cases {
        let said = match parse::<Sample>(Path::new(name), text) {
            Ok(loaded) => format!("{:?}", loaded.raw),
            Err(e) => e.to_string(),
        };
        if said != *message {
            wrong.push(format!("{text:?}\n  says     {said}\n  expected {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cases.len(), 33);
}

#[test]
fn the_nearest_key_is_a_help_or_silent() {
    let known = [
        "id",
        "remote_port",
        "local_host",
        "local_port",
        "auto_start",
        "compression",
    ];
    let cases = [
        ("remoteport", Some("remote_port")),
        ("Remote-Port", Some("remote_port")),
        ("locla_port", Some("local_port")),
        ("autostart", Some("auto_start")),
        ("compress", Some("compression")),
        ("colour", None),
        ("x", None),
        ("", None),
    ];
    for (typed, expected) in cases {
        assert_eq!(de::nearest(typed, &known), expected, "{typed}");
    }
}

#[test]
fn secrets_are_never_repeated() {
    let load = |text: &str| parse::<WithSecret>(Path::new("a.json"), text);
    let shown = format!("{:?}", load(r#"{"secret": "hunter2"}"#).unwrap().raw);
    assert_eq!(shown, "WithSecret { secret: Secret(...) }");
    for wrong in [
        "123456",
        "-123456",
        "1234.56",
        "true",
        "[\"123456\"]",
        "{\"123456\": 1}",
    ] {
        let message = load(&format!("{{\"secret\": {wrong}}}"))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("a.json:1:12: secret: expected text in quotes"),
            "{message}"
        );
        assert!(
            !message.contains("1234") && !message.contains("true"),
            "{message}"
        );
    }
}

#[test]
fn hosts_are_judged_without_asking_anybody() {
    for (text, host) in [
        ("203.0.113.10", "203.0.113.10"),
        (" example.org ", "example.org"),
        ("my_host-1.example.org.", "my_host-1.example.org."),
        ("localhost", "localhost"),
        ("::1", "::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ] {
        assert_eq!(
            text.parse::<Host>().map(|h| h.as_str().to_owned()),
            Ok(host.to_owned())
        );
    }
    let long = "a".repeat(64);
    for (text, error) in [
        ("", HostError::Empty),
        ("  ", HostError::Empty),
        ("http://example.org", HostError::Url),
        ("example.org/", HostError::Url),
        ("example.org:9000", HostError::WithPort),
        ("[::1]:9000", HostError::WithPort),
        ("[::1", HostError::BadIpv6),
        ("1::2::3", HostError::BadIpv6),
        ("fe80::1%", HostError::BadIpv6),
        ("bücher.example", HostError::NotAscii),
        ("256.1.1.1", HostError::BadIpv4),
        ("127.1", HostError::BadIpv4),
        ("a b", HostError::BadName),
        ("a..b", HostError::BadName),
        (&long, HostError::BadName),
        ("<HOST>", HostError::BadName),
    ] {
        assert_eq!(text.parse::<Host>(), Err(error), "{text}");
    }
}

#[test]
fn seconds_have_bounds() {
    for good in ["0.001", "0.5", "31536000"] {
        assert_eq!(
            good.parse::<Seconds>().unwrap().duration().as_secs_f64(),
            good.parse::<f64>().unwrap()
        );
    }
    for bad in ["0", "-1", "nan", "inf", "31536001", "", "5s", "0.0001"] {
        assert!(bad.parse::<Seconds>().is_err(), "{bad}");
        assert_eq!(
            bad.parse::<Grace>().is_ok(),
            matches!(bad, "0" | "0.0001"),
            "{bad}"
        );
    }
}

#[test]
fn files_are_read_within_bounds() {
    let dir = Scratch::new();
    let message = |name: &str| {
        load::<Sample>(&dir.path().join(name))
            .map(|l| l.raw)
            .unwrap_err()
            .to_string()
    };
    let at = |name: &str| dir.path().join(name).display().to_string();
    assert_eq!(
        message("none.yaml"),
        format!(
            "the configuration file cannot be used: {} does not exist",
            at("none.yaml")
        )
    );
    fs::create_dir(dir.path().join("dir.json")).unwrap();
    assert_eq!(
        message("dir.json"),
        format!(
            "the configuration file cannot be used: {} is not an ordinary file",
            at("dir.json")
        )
    );
    fs::write(dir.path().join("latin.yaml"), b"name: a\n# M\xfcller\n").unwrap();
    assert_eq!(
        message("latin.yaml"),
        format!(
            "{}:2: the file is not UTF-8 text; save it as UTF-8",
            at("latin.yaml")
        )
    );
    fs::write(
        dir.path().join("big.yaml"),
        vec![b'#'; MAX_CONFIG_FILE as usize + 1],
    )
    .unwrap();
    assert_eq!(
        message("big.yaml"),
        format!(
            "the configuration file cannot be used: {} is larger than 1048576 bytes, so it cannot be the right file",
            at("big.yaml")
        )
    );
    fs::write(dir.path().join("UPPER.JSON"), "{\"on\": true}").unwrap();
    assert_eq!(
        load::<Sample>(&dir.path().join("UPPER.JSON"))
            .unwrap()
            .raw
            .on,
        Some(true)
    );
}

/// What a plain text, a quoted one and a tagged one mean in YAML, seen where nothing is asked of them.
#[test]
fn yaml_texts_mean_what_they_look_like() {
    let meaning = |text: &str| match Format::Yaml.parse(&format!("a: {text}")) {
        Err(e) => format!("error: {}", e.message),
        Ok(root) => {
            let node::Value::Map(mut entries) = root.value else {
                panic!("no mapping: {text}")
            };
            match entries.pop().unwrap().1.value {
                node::Value::Text(text) => format!("text {}", &*text),
                other => format!("{other:?}"),
            }
        }
    };
    let misfit = |tag: &str| {
        format!("error: this is not valid YAML: `!!{tag}` does not fit what it stands at")
    };
    for (text, wanted) in [
        ("", "Null".to_owned()),
        ("~", "Null".into()),
        ("NULL", "Null".into()),
        ("'~'", "text ~".into()),
        ("!!str ~", "text ~".into()),
        ("!!null x", "Null".into()),
        ("Yes", "Bool(true)".into()),
        ("OFF", "Bool(false)".into()),
        ("'off'", "text off".into()),
        ("!!bool off", "Bool(false)".into()),
        ("!!bool maybe", misfit("bool")),
        ("0", "Integer(0)".into()),
        ("-12", "Integer(-12)".into()),
        ("+7", "Integer(7)".into()),
        ("1_000", "Integer(1000)".into()),
        ("1__0", "text 1__0".into()),
        ("_1", "text _1".into()),
        ("0x1F", "Integer(31)".into()),
        ("0o17", "Integer(15)".into()),
        ("0b101", "Integer(5)".into()),
        ("0x", "text 0x".into()),
        (
            "-",
            "error: this is not valid YAML: block sequence entries are not allowed in this context"
                .into(),
        ),
        (
            "18446744073709551615",
            "Integer(18446744073709551615)".into(),
        ),
        (
            "18446744073709551616",
            "Float(1.8446744073709552e19)".into(),
        ),
        ("1.5e3", "Float(1500.0)".into()),
        (".5", "Float(0.5)".into()),
        ("-.INF", "Float(-inf)".into()),
        ("inf", "text inf".into()),
        ("nan", "text nan".into()),
        ("1.2.3", "text 1.2.3".into()),
        ("'1'", "text 1".into()),
        ("\"1\"", "text 1".into()),
        ("!!int '1'", "Integer(1)".into()),
        ("!!float 1", "Float(1.0)".into()),
        ("!!seq x", misfit("seq")),
        ("!!str [x]", misfit("str")),
        ("!own 1", "text 1".into()),
        (
            "*none",
            "error: this is not valid YAML: while parsing node, found unknown anchor".into(),
        ),
        (
            "&a [*a]",
            "error: this is not valid YAML: an alias stands within what it names".into(),
        ),
        ("0:0", "text 0:0".into()),
        ("ff02::1", "text ff02::1".into()),
    ] {
        assert_eq!(meaning(text), wanted, "{text:?}");
    }
    for text in ["0123", "-010", "00.5"] {
        let wanted = format!("text {text}");
        assert_eq!(
            meaning(text),
            wanted,
            "octal for one reader, not for another"
        );
    }
    assert_eq!(meaning("0.5"), "Float(0.5)");
}

#[test]
fn a_merge_gives_way_to_what_stands_there() {
    let text = "a: &a {port: 1, count: 2}\nb: &b {count: 3, host: x}\n\
                one: {<<: *a, port: 9}\ntwo: {<<: [*b, *a]}\nthree: {'<<': 1}\n";
    let root = Format::Yaml.parse(text).unwrap();
    let node::Value::Map(entries) = root.value else {
        panic!("no mapping")
    };
    let said = |name: &str| {
        let (_, node) = entries.iter().find(|(key, _)| key.name == name).unwrap();
        let node::Value::Map(entries) = &node.value else {
            panic!("no mapping: {name}")
        };
        let mut all: Vec<String> = entries
            .iter()
            .map(|(key, node)| match &node.value {
                node::Value::Integer(n) => format!("{}={n}", key.name),
                node::Value::Text(t) => format!("{}={}", key.name, &**t),
                other => panic!("{other:?}"),
            })
            .collect();
        all.sort();
        all.join(" ")
    };
    assert_eq!(said("one"), "count=2 port=9");
    assert_eq!(said("two"), "count=3 host=x port=1");
    assert_eq!(said("three"), "<<=1");
    let error = Format::Yaml.parse("a: {<<: 1}").unwrap_err();
    assert_eq!(
        error.message,
        "this is not valid YAML: `<<` takes a group of keys, or a list of such groups"
    );
}

#[test]
fn a_bomb_of_aliases_goes_off_quietly() {
    let mut text = String::from("a: &a [x,x,x,x,x,x,x,x,x,x]\n");
    for (new, old) in ["b", "c", "d", "e", "f", "g", "h", "i"]
        .iter()
        .zip(["a", "b", "c", "d", "e", "f", "g", "h"])
    {
        let stars = vec![format!("*{old}"); 10].join(",");
        text.push_str(&format!("{new}: &{new} [{stars}]\n"));
    }
    let error = yaml(&text).unwrap_err();
    assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
    let deep = format!("list: {}", "[".repeat(5000));
    assert!(matches!(yaml(&deep), Err(ConfigError::Syntax { .. })));
}

#[test]
fn places_are_known_for_every_key_and_its_surroundings() {
    let loaded = parse::<Sample>(
        Path::new("a.yaml"),
        "inner:\n  port: 1\nlist:\n  - {}\n  - port: 2\n    count: 3\n",
    )
    .unwrap();
    let at = |key: &str| loaded.places.of(key).map(|p| (p.line, p.column));
    assert_eq!(at("inner.port"), Some((2, 3)));
    assert_eq!(at("list[1].count"), Some((6, 5)));
    assert_eq!(at("list[1].missing"), Some((5, 5)));
    assert_eq!(at("list[0].missing"), Some((4, 5)));
    let mut checker = Checker::new(loaded.places);
    checker.error("list[1].host", "is missing");
    assert_eq!(
        checker.finish().unwrap_err().to_string(),
        "a.yaml:5:5: list[1].host: is missing"
    );
}

/// Every cut of a good text is either read or refused with a message; nothing panics.
#[test]
fn no_cut_and_no_flip_brings_the_readers_down() {
    let good = "{\"name\": \"a\\\"b\\\\\", \"list\": [{\"port\": 1}, {}], \"wait\": 1.5e0, \"inner\": {\"host\": \"ü\"}}";
    let mut refused = 0;
    for end in (0..=good.len()).filter(|&i| good.is_char_boundary(i)) {
        refused += usize::from(json(&good[..end]).is_err());
        let _ = yaml(&good[..end]);
    }
    assert_eq!(refused, good.chars().count(), "only the whole text is JSON");
    for index in 0..good.len() {
        for replacement in *b"\"\\{}[],: \n\0#&*-" {
            let mut bytes = good.as_bytes().to_vec();
            bytes[index] = replacement;
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = json(&text);
                let _ = yaml(&text);
            }
        }
    }
}

mod editing {
    use super::super::Format;
    use super::super::edit::{EditError, insert_text, only_added};

    const HEX: &str = "9d61b19deffd5a60";

    fn insert(format: Format, text: &str) -> Result<String, EditError> {
        insert_text(format, text, "secret", HEX, "pin").map(|text| text.to_string())
    }

    #[test]
    fn json_keeps_everything_else() {
        let cases = [
            ("{}", "{\"secret\": \"H\"}"),
            ("{ }\n", "{\"secret\": \"H\" }\n"),
            ("{\"a\":1}", "{\"a\":1, \"secret\": \"H\"}"),
            (
                "{\n  \"pin\": \"x\",\n  \"z\": [1,\n2]\n}\n",
                "{\n  \"pin\": \"x\",\n  \"secret\": \"H\",\n  \"z\": [1,\n2]\n}\n",
            ),
            (
                "{\r\n\t\"z\": 1.50,\r\n\t\"pin\": \"x\"\r\n}",
                "{\r\n\t\"z\": 1.50,\r\n\t\"pin\": \"x\",\r\n\t\"secret\": \"H\"\r\n}",
            ),
            (
                "{\n  \"b\": {\"pin\": 1},\n  \"a\": {}\n}",
                "{\n  \"b\": {\"pin\": 1},\n  \"a\": {},\n  \"secret\": \"H\"\n}",
            ),
            (
                "{\"secret\": null, \"a\": 1}",
                "{\"secret\": \"H\", \"a\": 1}",
            ),
            ("{\"secret\":\"\"}", "{\"secret\":\"H\"}"),
            (
                "\u{feff}{\"s\\u0065cret\": null}",
                "\u{feff}{\"s\\u0065cret\": \"H\"}",
            ),
            (
                "{\"ü\": \"}{\", \"pin\": \"\\\"\"}",
                "{\"ü\": \"}{\", \"pin\": \"\\\"\", \"secret\": \"H\"}",
            ),
        ];
        for (old, new) in cases {
            assert_eq!(
                insert(Format::Json, old),
                Ok(new.replace('H', HEX)),
                "{old}"
            );
        }
    }

    #[test]
    fn yaml_keeps_everything_else() {
        let cases = [
            ("", "secret: \"H\"\n"),
            ("# only words", "# only words\nsecret: \"H\"\n"),
            ("a: 1\n", "a: 1\nsecret: \"H\"\n"),
            ("a: 1", "a: 1\nsecret: \"H\"\n"),
            (
                "---\npin: x  # the pin\n# next\nz: 1\n",
                "---\npin: x  # the pin\nsecret: \"H\"\n# next\nz: 1\n",
            ),
            ("pin: x\r\nz: 1\r\n", "pin: x\r\nsecret: \"H\"\r\nz: 1\r\n"),
            (
                "  a: 1\n  pin: 'it''s'\n  b: 2\n",
                "  a: 1\n  pin: 'it''s'\n  secret: \"H\"\n  b: 2\n",
            ),
            (
                "# head\nlist:\n  - a: 1\n    b: |\n      text # not a comment\n\n",
                "# head\nsecret: \"H\"\nlist:\n  - a: 1\n    b: |\n      text # not a comment\n\n",
            ),
            ("secret:\nz: 1\n", "secret: \"H\"\nz: 1\n"),
            (
                "secret:   # made later\nz: 1\n",
                "secret: \"H\"   # made later\nz: 1\n",
            ),
            ("z: 1\nsecret:", "z: 1\nsecret: \"H\""),
            ("secret: ~ # none\n", "secret: \"H\" # none\n"),
            ("secret: null\n", "secret: \"H\"\n"),
            ("secret: ''\n", "secret: \"H\"\n"),
            ("{pin: x, z: 1}\n", "{pin: x, \"secret\": \"H\", z: 1}\n"),
            ("{}\n", "{\"secret\": \"H\"}\n"),
            (
                "pin: [a,\n  b]\nz: 1\n...\n",
                "pin: [a,\n  b]\nsecret: \"H\"\nz: 1\n...\n",
            ),
            (
                "pin: >\n  folded\n  text\nz: 1\n",
                "pin: >\n  folded\n  text\nz: 1\nsecret: \"H\"\n",
            ),
            (
                "ü: 😀\npin: 😀 # ü\nz: 1\n",
                "ü: 😀\npin: 😀 # ü\nsecret: \"H\"\nz: 1\n",
            ),
            (
                "base: &b {a: 1}\npin: *b\nz: *b\n",
                "base: &b {a: 1}\npin: *b\nsecret: \"H\"\nz: *b\n",
            ),
        ];
        let mut wrong = Vec::new();
        for (old, new) in cases {
            let new = new.replace('H', HEX);
            let got = insert(Format::Yaml, old);
            if got.as_ref() != Ok(&new) {
                wrong.push(format!("{old:?}\n  gives    {got:?}\n  expected {new:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_text_with_another_meaning_is_not_accepted() {
        let tree = |text: &str| Format::Yaml.parse(text).unwrap();
        let old = tree("a: {b: [1, x]}\nsecret:\nz: 2\n");
        let accepted = |new: &str| only_added(&old, &tree(new), "secret", HEX);
        assert!(accepted(&format!("secret: {HEX}\na: {{b: [1, x]}}\nz: 2")));
        for new in [
            "a: {b: [1, x]}\nz: 2".to_owned(),
            "a: {b: [1, x]}\nsecret:\nz: 2".to_owned(),
            format!("a: {{b: [1, x]}}\nsecret: {HEX}0\nz: 2"),
            format!("a: {{b: [1, x]}}\nsecret: {HEX}"),
            format!("a: {{b: [1, y]}}\nsecret: {HEX}\nz: 2"),
            format!("a: {{b: [1]}}\nsecret: {HEX}\nz: 2"),
            format!("a: {{b: [1, x], secret: {HEX}}}\nz: 2"),
            format!("z: 2\na: {{b: [1, x]}}\nsecret: {HEX}"),
            format!("a: {{b: [1, x]}}\nsecret: {HEX}\nz: '2'"),
        ] {
            assert!(!accepted(&new), "{new}");
        }
    }

    #[test]
    fn a_value_that_is_there_is_never_replaced() {
        for (format, text) in [
            (Format::Json, "{\"secret\": \"x\"}"),
            (Format::Json, "{\"secret\": 0}"),
            (Format::Yaml, "secret: x"),
            (Format::Yaml, "secret: {}"),
        ] {
            assert_eq!(insert(format, text), Err(EditError::Present), "{text}");
        }
        assert!(matches!(
            insert(Format::Json, "{"),
            Err(EditError::Unreadable(_))
        ));
        assert_eq!(insert(Format::Json, "[1]"), Err(EditError::NoWay));
        // Taken from another mapping by a merge: there is nothing here to replace.
        assert_eq!(
            insert(Format::Yaml, "a: &a {secret: x}\n<<: *a\n"),
            Err(EditError::Present)
        );
    }
}
