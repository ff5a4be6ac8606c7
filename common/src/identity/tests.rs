use super::*;
use crate::files::ReadError;
use crate::scratch::Scratch;
use std::fs;

/// RFC 8032, section 7.1, tests 1 to 3: seed, public key, message, signature.
const RFC8032: [(&str, &str, &str, &str); 3] = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
];

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

#[test]
fn keys_and_signatures_are_those_of_rfc_8032() {
    for (seed, public, message, signature) in RFC8032 {
        let key = IdentityKey::from_hex(seed).unwrap();
        assert_eq!(key.public().to_string(), public);
        assert_eq!(*key.seed_hex(), seed);
        let message = unhex(message);
        let signature: [u8; 64] = unhex(signature).try_into().unwrap();
        assert_eq!(key.sign(&message), signature);
        assert!(key.public().verify(&message, &signature));
        for byte in 0..64 {
            let mut flipped = signature;
            flipped[byte] ^= 1;
            assert!(!key.public().verify(&message, &flipped), "byte {byte}");
        }
    }
}

#[test]
fn nothing_secret_is_printed() {
    let (seed, public, ..) = RFC8032[0];
    let key = IdentityKey::from_hex(seed).unwrap();
    let shown = format!("{key:?} {:#?}", Some(key.clone()));
    assert!(
        shown.contains(public) && !shown.contains(&seed[..8]),
        "{shown}"
    );
    assert_eq!(key.public().short(), "d75a9801...f707511a");
}

#[test]
fn hex_is_read_as_python_reads_it() {
    let public = RFC8032[0].1;
    let expected: PublicKey = public.parse().unwrap();
    let groups: Vec<String> = public
        .as_bytes()
        .chunks(8)
        .map(|c| String::from_utf8(c.to_vec()).unwrap())
        .collect();
    for good in [
        public.to_uppercase(),
        format!("  {public}\r\n"),
        groups.join(" "),
        groups.join("\t\x0b\x0c\n"),
    ] {
        assert_eq!(good.parse(), Ok(expected), "{good:?}");
    }
}

#[test]
fn bad_keys_are_told_apart() {
    let public = RFC8032[0].1;
    let split = format!("{} {}", &public[..3], &public[3..]);
    let umlaut = format!("ä{public}");
    let cases = [
        ("", "it is empty; a key is 64 hex digits"),
        (" \n", "it is empty; a key is 64 hex digits"),
        (
            "<SERVER_PUBLIC_KEY_HEX>",
            "character 1 is not a hex digit; a key is 64 hex digits",
        ),
        (
            "d75a98zz",
            "character 7 is not a hex digit; a key is 64 hex digits",
        ),
        (
            &umlaut,
            "character 1 is not a hex digit; a key is 64 hex digits",
        ),
        (
            &split,
            "white space at character 4 splits a byte; a key is 64 hex digits",
        ),
        (
            &public[..63],
            "it has 63 hex digits; a key is 64 hex digits",
        ),
        (
            &public[..62],
            "it has 62 hex digits; a key is 64 hex digits",
        ),
        ("abc \n", "it has 3 hex digits; a key is 64 hex digits"),
        (
            &format!("{public}00"),
            "it has 66 hex digits; a key is 64 hex digits",
        ),
        (
            "0200000000000000000000000000000000000000000000000000000000000000",
            "these 64 hex digits are not an Ed25519 public key; copy it again",
        ),
        (
            "0100000000000000000000000000000000000000000000000000000000000000",
            "this public key is weak (small order) and proves nothing; use a real one",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(
            text.parse::<PublicKey>().unwrap_err().to_string(),
            message,
            "{text:?}"
        );
    }
}

#[test]
fn a_key_file_is_made_once_and_kept() {
    let dir = Scratch::new();
    let path = dir.path().join("server_identity_key.hex");
    let made = load_or_create(&path).unwrap();
    assert_eq!(made.origin, KeyOrigin::Created);
    let content = fs::read_to_string(&path).unwrap();
    assert_eq!(content, format!("{}\n", *made.key.seed_hex()));
    let again = load_or_create(&path).unwrap();
    assert_eq!(
        (again.origin, again.key.public(), again.warning),
        (KeyOrigin::Existing, made.key.public(), None)
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), content);
    assert_eq!(dir.names(), ["server_identity_key.hex"]);
    assert_ne!(
        load_or_create(&dir.path().join("other.hex"))
            .unwrap()
            .key
            .public(),
        made.key.public()
    );
}

#[cfg(unix)]
#[test]
fn the_mode_of_a_key_file_is_private_and_watched() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Scratch::new();
    let path = dir.path().join("key.hex");
    load_or_create(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let path_text = path.display();
    assert_eq!(
        load_or_create(&path).unwrap().warning.unwrap(),
        format!(
            "{path_text} holds a secret key but other users may open it (mode 640); run: chmod 600 {path_text}"
        )
    );
}

#[test]
fn a_damaged_key_file_is_an_error_and_stays() {
    let dir = Scratch::new();
    let path = dir.path().join("key.hex");
    let seed = RFC8032[0].0;
    let big = "ab".repeat(4096);
    let cases: [(&[u8], &str); 6] = [
        (b"", "is damaged: it is empty"),
        (&seed.as_bytes()[..40], "is damaged: it has 40 hex digits"),
        (b"not a key", "is damaged: character 1 is not a hex digit"),
        (b"\xff\xfe\x00", "is damaged: it is not text"),
        (&[0; 64], "is damaged: character 1 is not a hex digit"),
        (big.as_bytes(), "is larger than 4096 bytes"),
    ];
    for (content, part) in cases {
        fs::write(&path, content).unwrap();
        let message = load_or_create(&path).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
        assert!(!message.contains(&seed[..8]));
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    for good in [
        format!(" \t{seed}\r\n\r\n"),
        seed.to_uppercase(),
        format!("\u{feff}{seed}"),
    ] {
        fs::write(&path, &good).unwrap();
        assert_eq!(
            load_or_create(&path).unwrap().key.public().to_string(),
            RFC8032[0].1
        );
    }
    assert!(matches!(
        load_or_create(dir.path()),
        Err(KeyFileError::Read(ReadError::NotAFile(_)))
    ));
}

#[cfg(unix)]
#[test]
fn a_dangling_link_is_not_taken_for_a_missing_key() {
    let dir = Scratch::new();
    let path = dir.path().join("key.hex");
    std::os::unix::fs::symlink(dir.path().join("unmounted/key.hex"), &path).unwrap();
    assert!(matches!(
        load_or_create(&path),
        Err(KeyFileError::Read(ReadError::NotFound(_)))
    ));
    assert!(path.symlink_metadata().unwrap().is_symlink());
}

#[test]
fn an_allow_list_has_comments_names_and_groups() {
    let [a, b, c] = RFC8032.map(|(_, public, ..)| public);
    let text = format!(
        "\u{feff}# who may come\n{a}\n\n  {} Laptop of Ann # bed 12\r\n{} {} cafe\n{a} again\n",
        b.to_uppercase(),
        &c[..32],
        &c[32..],
    );
    let list = AllowList::parse(&text).unwrap();
    let seen: Vec<_> = list
        .entries()
        .iter()
        .map(|e| (e.key.to_string(), e.name.as_deref(), e.line))
        .collect();
    assert_eq!(
        seen,
        [
            (a.to_owned(), None, 2),
            (b.to_owned(), Some("Laptop of Ann"), 4),
            (c.to_owned(), Some("cafe"), 5)
        ]
    );
    assert_eq!(
        list.find(&b.parse().unwrap()).unwrap().name.as_deref(),
        Some("Laptop of Ann")
    );
    assert!(
        list.find(&IdentityKey::generate().unwrap().public())
            .is_none()
    );
    assert_eq!(
        list.warnings,
        ["line 6: the key d75a9801...f707511a stands on line 2 already; this line is ignored"]
    );
    assert!(AllowList::parse("").unwrap().is_empty());
}

#[test]
fn every_bad_line_of_an_allow_list_is_named() {
    let a = RFC8032[0].1;
    let text = format!(
        "hello\n{a} ok\n{}\n# fine\n{a}ab name\n{a} bell\x07\n",
        &a[..60]
    );
    let lines: Vec<_> = AllowList::parse(&text)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        lines,
        [
            "line 1: not a public key: character 1 is not a hex digit; a key is 64 hex digits",
            "line 3: not a public key: it has 60 hex digits; a key is 64 hex digits",
            "line 5: not a public key: it has 66 hex digits; a key is 64 hex digits",
            "line 6: the name holds control characters; remove them",
        ]
    );
}

#[test]
fn a_missing_allow_list_is_created_and_followed() {
    let dir = Scratch::new();
    let path = dir.path().join("allowed_clients.txt");
    let mut file = AllowListFile::load(&path).unwrap();
    assert!(file.list().is_empty());
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .starts_with("# Public keys of the clients")
    );
    assert!(matches!(file.reload_if_changed(), Reload::Unchanged));

    let [a, b, _] = RFC8032.map(|(_, public, ..)| public);
    fs::write(&path, format!("{a} ann\n")).unwrap();
    assert!(matches!(file.reload_if_changed(), Reload::Settling));
    assert!(
        file.list().is_empty(),
        "an unconfirmed change must not be in force"
    );
    let Reload::Changed { added, removed } = file.reload_if_changed() else {
        panic!("must change")
    };
    assert_eq!(
        (added[0].name.as_deref(), added.len(), removed.len()),
        (Some("ann"), 1, 0)
    );
    assert!(matches!(file.reload_if_changed(), Reload::Unchanged));

    // Caught while an editor had emptied it: back before the second look, so nothing happened.
    fs::write(&path, "").unwrap();
    assert!(matches!(file.reload_if_changed(), Reload::Settling));
    fs::write(&path, format!("{a} ann\n")).unwrap();
    assert!(matches!(file.reload_if_changed(), Reload::Unchanged));

    // Bad content: said once, the old list stays.
    fs::write(&path, format!("{a} ann\noops\n")).unwrap();
    assert!(matches!(file.reload_if_changed(), Reload::Settling));
    let Reload::Bad(error) = file.reload_if_changed() else {
        panic!("must be bad")
    };
    assert_eq!(
        error.to_string(),
        format!(
            "the allow list {} has bad lines; correct them or put a # before them:\n  \
             line 2: not a public key: character 1 is not a hex digit; a key is 64 hex digits",
            path.display()
        )
    );
    assert!(matches!(file.reload_if_changed(), Reload::Unchanged));
    assert_eq!(file.list().len(), 1);

    // Gone: the same.
    fs::remove_file(&path).unwrap();
    assert!(matches!(file.reload_if_changed(), Reload::Settling));
    assert!(matches!(
        file.reload_if_changed(),
        Reload::Bad(AllowListError::Read(ReadError::NotFound(_)))
    ));
    assert!(matches!(file.reload_if_changed(), Reload::Unchanged));
    assert_eq!(file.list().len(), 1);

    fs::write(&path, format!("{b}\n")).unwrap();
    assert!(matches!(file.reload_if_changed(), Reload::Settling));
    let Reload::Changed { added, removed } = file.reload_if_changed() else {
        panic!("must change")
    };
    assert_eq!(
        (
            added[0].key.to_string().as_str(),
            removed[0].key.to_string().as_str()
        ),
        (b, a)
    );
}
