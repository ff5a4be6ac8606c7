//! The commands that people are told to type, to the letter, run by the openssl of this machine.

use super::*;
use std::process::Command;

/// From the documents of the tunnel; only the shell variables are set to names for this test.
const RECIPE: &str = r#"
openssl genpkey -algorithm RSA -out ca.key -pkeyopt rsa_keygen_bits:2048
openssl req -new -x509 -key ca.key -out ca.crt -days 365 -subj "/CN=MyTestCA"

SERVER_HOSTNAME="tunnel-server"
openssl genpkey -algorithm RSA -out server.key -pkeyopt rsa_keygen_bits:2048
openssl req -new -key server.key -out server.csr -subj "/CN=${SERVER_HOSTNAME}"
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 360 -extfile <(printf "subjectAltName=DNS:${SERVER_HOSTNAME},DNS:localhost,IP:127.0.0.1")

CLIENT_ID="your.client.id"
openssl genpkey -algorithm RSA -out client.key -pkeyopt rsa_keygen_bits:2048
openssl req -new -key client.key -out client.csr -subj "/CN=${CLIENT_ID}"
openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAserial ca.srl -out client.crt -days 360
"#;

/// Runs a script in a folder; `None` where there is no bash or openssl to run it.
fn run(folder: &Scratch, script: &str) -> Option<()> {
    let there = |program: &str, argument: &str| {
        Command::new(program)
            .arg(argument)
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !there("openssl", "version") || !there("bash", "--version") {
        eprintln_skip();
        return None;
    }
    let output = Command::new("bash")
        .args(["-euc", script])
        .current_dir(folder.path())
        .output()
        .expect("bash");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(())
}

#[allow(clippy::print_stderr)]
fn eprintln_skip() {
    eprintln!("skipped: openssl and bash are not installed");
}

fn read(folder: &Scratch, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).expect("made by openssl")
}

fn ends(folder: &Scratch) -> Ends {
    let ca = read(folder, "ca.crt");
    Ends {
        server_cert: read(folder, "server.crt"),
        server_key: read(folder, "server.key"),
        client_ca: Some(ca.clone()),
        allowed: Vec::new(),
        server_min: MinVersion::Tls12,
        server_ca: ca,
        client: Some((read(folder, "client.crt"), read(folder, "client.key"))),
        client_min: MinVersion::Tls12,
        name: "tunnel-server".to_owned(),
    }
}

#[test]
fn the_recipe_of_the_documents_works_to_the_letter() {
    let folder = Scratch::new();
    let Some(()) = run(&folder, RECIPE) else {
        return;
    };
    for version in VERSIONS {
        for name in ["tunnel-server", "localhost", "127.0.0.1"] {
            let mut ends = ends(&folder);
            ends.client_min = version;
            ends.name = name.to_owned();
            ends.allowed = vec!["your.client.id".to_owned()];
            let meeting = ends.meet();
            assert_eq!(
                (&meeting.client, &meeting.server),
                (&Ok(()), &Ok(())),
                "{name}"
            );
            assert_eq!(meeting.peer.expect("named").names.short(), "your.client.id");
            assert_eq!(meeting.notice, None);
        }
        let mut ends = ends(&folder);
        ends.client_min = version;
        ends.name = "somewhere.else".to_owned();
        let said = ends.meet().client.expect_err("another name");
        assert!(
            said.contains("it is for tunnel-server, localhost, 127.0.0.1."),
            "{said}"
        );
    }
    // The CA of the documents signs clients of ours as well.
    let made = make::client(folder.path(), "client2", UnixTime::now()).expect("made");
    let mut ends = ends(&folder);
    ends.client = Some((
        fs::read_to_string(made.cert).expect("made"),
        fs::read_to_string(made.key).expect("made"),
    ));
    let meeting = ends.meet();
    assert_eq!((meeting.client, meeting.server), (Ok(()), Ok(())));
}

/// The other forms and kinds of keys that openssl writes.
#[test]
fn keys_in_every_form_are_read() {
    let folder = Scratch::new();
    let script = format!(
        r#"{RECIPE}
openssl rsa -in client.key -traditional -out pkcs1.key
openssl ecparam -name prime256v1 -genkey -out sec1.key
openssl ecparam -name secp384r1 -genkey -noout -out p384.key
openssl genpkey -algorithm ed25519 -out ed25519.key
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out pkcs8.key
for key in sec1 p384 ed25519 pkcs8; do
    openssl req -new -key $key.key -subj "/CN=$key" -out $key.csr
    openssl x509 -req -in $key.csr -CA ca.crt -CAkey ca.key -CAserial ca.srl -out $key.crt -days 9 -sha256
done
openssl pkey -in client.key -aes256 -passout pass:x -out encrypted.key
openssl rsa -in client.key -traditional -aes256 -passout pass:x -out encrypted1.key
openssl x509 -in client.crt -outform der -out client.der
cp client.crt pkcs1.crt
"#
    );
    let Some(()) = run(&folder, &script) else {
        return;
    };
    for version in VERSIONS {
        for kind in ["pkcs1", "sec1", "p384", "ed25519", "pkcs8"] {
            let mut ends = ends(&folder);
            ends.client_min = version;
            let file = |end: &str| read(&folder, &format!("{kind}.{end}"));
            ends.client = Some((file("crt"), file("key")));
            let meeting = ends.meet();
            assert_eq!((meeting.client, meeting.server), (Ok(()), Ok(())), "{kind}");
        }
    }
    let refused = |cert: &str, key: &str| {
        let settings = ClientSettings {
            server_ca: folder.path().join("ca.crt"),
            cert: Some(folder.path().join(cert)),
            key: Some(folder.path().join(key)),
            min_version: MinVersion::Tls12,
        };
        ClientTls::load(&settings)
            .expect_err("not usable")
            .to_string()
    };
    // As a serial number may begin: the digit is the byte that DER begins with.
    fs::write(folder.path().join("zero.txt"), "0A1B2C3D\n").expect("written");
    for (cert, key, wanted) in [
        (
            "client.crt",
            "zero.txt",
            "nothing that begins with -----BEGIN",
        ),
        ("client.crt", "encrypted.key", "under a passphrase"),
        (
            "client.crt",
            "encrypted1.key",
            "openssl pkey -in KEY -out PLAIN",
        ),
        ("client.der", "client.key", "it is binary (DER or PKCS#12)"),
        ("client.csr", "client.key", "it holds a certificate request"),
        ("client.key", "client.crt", "were the two files exchanged?"),
        ("client.crt", "ca.crt", "client_key"),
        (
            "client.crt",
            "server.key",
            "does not belong to the first certificate in",
        ),
        (
            "client.crt",
            "ca.srl",
            "nothing that begins with -----BEGIN",
        ),
        ("missing.crt", "client.key", "missing.crt does not exist"),
    ] {
        let said = refused(cert, key);
        assert!(said.contains(wanted), "{cert}, {key}: {said}");
    }
}
