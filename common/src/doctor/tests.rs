//! The report: text, JSON, exit code.

use super::*;

fn report(form: Form, findings: Vec<Finding>) -> (String, ExitCode) {
    let mut out = Vec::new();
    let mut report = Report::new("minitcptunnel-client", "1.2.3", form, Lang::En, &mut out);
    report.add_all(findings);
    let code = report.finish();
    (String::from_utf8(out).unwrap(), code)
}

const TEXT: Form = Form::Text { colour: false };

#[test]
fn the_exit_code_is_that_of_the_worst() {
    let ok = || Finding::ok("config", "fine");
    let note = || Finding::note("service", Code::NOT_A_SERVICE, "none");
    let warning = || Finding::warning("key", Code::KEY_READABLE, "open");
    let error = || Finding::error("server", Code::SERVER_UNREACHABLE, "away");
    let ends = || Finding::error("config", Code::CONFIG_SYNTAX, "no JSON");
    for (findings, code) in [
        (vec![], ExitCode::Ok),
        (vec![ok(), note()], ExitCode::Ok),
        (vec![warning(), note()], ExitCode::Warned),
        (vec![ok(), error(), warning()], ExitCode::Unwell),
        // What ends the program comes before what does not.
        (vec![error(), ends(), ok()], ExitCode::Configuration),
        (vec![error().at_most(Level::Warning)], ExitCode::Warned),
        // A warning of a code that ends programs does not.
        (vec![ends().at_most(Level::Warning)], ExitCode::Warned),
    ] {
        let seen = report(TEXT, findings.clone()).1;
        assert_eq!(seen, code, "{findings:?}");
        let (json, of_json) = report(Form::Json, findings);
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["exit_code"], code.number());
        assert_eq!(of_json, code);
    }
}

#[test]
fn json_is_one_object_with_everything() {
    let (text, _) = report(
        Form::Json,
        vec![
            Finding::ok("echo", "fast").figure("median_ms", 0.5),
            Finding::warning("key", Code::KEY_READABLE, "a\nb").cure("chmod 600 k"),
        ],
    );
    assert_eq!(text.lines().count(), 1);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["program"], "minitcptunnel-client");
    assert_eq!(json["version"], "1.2.3");
    assert_eq!(json["worst"], "warning");
    assert_eq!(json["findings"][0]["figures"]["median_ms"], 0.5);
    assert_eq!(json["findings"][0]["code"], Value::Null);
    let key = &json["findings"][1];
    assert_eq!(key["level"], "warning");
    assert_eq!(key["code"], Code::KEY_READABLE.to_string());
    assert_eq!(key["cure"], "chmod 600 k", "its own, not the code's");
    assert_eq!(key["cause"], Code::KEY_READABLE.explain(Lang::En).cause);
}

#[test]
fn text_is_narrow_and_explains_what_is_not_ok() {
    let long = "word ".repeat(60);
    let (text, _) = report(
        TEXT,
        vec![
            Finding::ok("config", "c.json says what it should"),
            Finding::error("server", Code::SERVER_UNREACHABLE, long),
            Finding::note("echo", None, "not asked for").cure("--echo"),
        ],
    );
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "ok    config         c.json says what it should");
    assert!(
        lines[1].starts_with("FAIL  server         word word"),
        "{text}"
    );
    assert!(lines[2].starts_with("                     word"), "{text}");
    assert!(
        lines.iter().all(|line| line.len() <= lines::WIDTH),
        "{text}"
    );
    let explained = Code::SERVER_UNREACHABLE.explain(Lang::En);
    let cause: String = format!("{:INDENT$}cause: {}", "", &explained.cause[..20]);
    assert!(text.contains(&cause), "{text}");
    assert!(
        text.contains("                     cure: --echo\n"),
        "{text}"
    );
    assert!(
        text.contains(&format!("({})", Code::SERVER_UNREACHABLE)),
        "{text}"
    );
    assert!(
        text.contains("3 findings: 1 ok, 1 to know, 0 to look at, 1 that keep"),
        "{text}"
    );
    assert!(!text.contains('\x1b'));
    let coloured = report(Form::Text { colour: true }, vec![Finding::ok("a", "b")]).0;
    assert!(
        coloured.starts_with("\x1b[32mok  \x1b[0m  a"),
        "{coloured:?}"
    );
}

#[test]
fn nothing_in_a_finding_can_pretend_to_be_another() {
    let (text, _) = report(TEXT, vec![Finding::note("dns", None, "x\nok  y\x1b[2J")]);
    assert_eq!(
        text.lines().next(),
        Some("note  dns            x ok y\\u{1b}[2J")
    );
    let (text, _) = report(
        TEXT,
        vec![Finding::note("dns", None, "가나다라 ".repeat(20))],
    );
    let fits = |line: &str| lines::width(line) <= lines::WIDTH;
    assert!(text.lines().all(fits), "{text}");
}
