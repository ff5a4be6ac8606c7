//! The reverse tunnel with other people's programs at both ends. Here belongs: what people will really put
//! through it. A program that is missing is a failure that says what to install, never a silent pass.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rig::{
    Bytes, Log, PATIENCE, Program, Service, TempDir, Tunnelled, alone, connect, eventually, figure,
    free_port, full, nginx, ok, seconds, send, sha256_hex, tool, wait_for_port,
};

const MIB: u64 = 1024 * 1024;

fn file_of(path: &Path, seed: u64, n: u64) {
    let mut file = fs::File::create(path).expect("create");
    send(&mut file, seed, n).expect("write");
}

fn hash_of(path: &Path) -> String {
    let file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    sha256_hex(file).expect("read").0
}

#[test]
fn curl_and_nginx_carry_a_large_file_both_ways() {
    let _alone = alone();
    let n = 1024 * MIB;
    let dir = TempDir::new();
    let (mut server, port) = nginx(&dir);
    let tunnel = Tunnelled::to(port);
    let curl = tool("curl", "curl");
    let big = dir.join("root/big");
    file_of(&big, 1, n);
    let wanted = hash_of(&big);
    let url = |name: &str| format!("http://127.0.0.1:{}/{name}", tunnel.port);

    let start = Instant::now();
    let here = dir.join("down");
    ok(Command::new(&curl)
        .args(["-sS", "--fail", "-o"])
        .arg(&here)
        .arg(url("big")));
    let down = seconds(start);
    assert_eq!(hash_of(&here), wanted, "downloaded");

    let start = Instant::now();
    ok(Command::new(&curl)
        .args(["-sS", "--fail", "-T"])
        .arg(&here)
        .arg(url("up")));
    let up = seconds(start);
    assert_eq!(hash_of(&dir.join("root/up")), wanted, "uploaded");
    let mib = (n / MIB) as f64;
    figure(
        "curl and nginx",
        format_args!(
            "{mib} MiB down in {down:.2} s ({:.0} MiB/s), up in {up:.2} s ({:.0} MiB/s), server {:?}, client {:?}",
            mib / down,
            mib / up,
            tunnel.server.usage(),
            tunnel.client.usage()
        ),
    );

    // Many small requests over one connection, and over many.
    fs::write(dir.join("root/small"), "small").expect("write");
    for keep_alive in ["Connection: keep-alive", "Connection: close"] {
        let mut command = Command::new(&curl);
        command.args(["-sS", "--fail", "-H", keep_alive]);
        for _ in 0..100 {
            command.arg(url("small"));
        }
        let output = ok(&mut command);
        assert_eq!(output.stdout, b"small".repeat(100), "{keep_alive}");
    }
    server.kill();
}

/// An OpenSSH server and what reaches it.
struct Ssh {
    dir: TempDir,
    _server: Program,
    tunnel: Tunnelled,
}

impl Ssh {
    fn start() -> Self {
        let dir = TempDir::new();
        let port = free_port();
        let keygen = tool("ssh-keygen", "openssh-client");
        for name in ["host", "user"] {
            ok(Command::new(&keygen)
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(name)));
        }
        fs::copy(dir.join("user.pub"), dir.join("authorized")).expect("copy");
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             PermitRootLogin yes\nStrictModes no\nPasswordAuthentication no\nUsePAM no\n\
             Subsystem sftp internal-sftp\n",
            dir.join("host").display(),
            dir.join("authorized").display()
        );
        fs::write(dir.join("sshd_config"), config).expect("write");
        // Where it drops its privileges; some systems make it only when the service starts.
        let _ = fs::create_dir_all("/run/sshd");
        let mut command = Command::new(tool("sshd", "openssh-server"));
        command
            .args(["-D", "-e", "-f"])
            .arg(dir.join("sshd_config"));
        let server = Program::start("sshd", &mut command);
        wait_for_port(port);
        Self {
            tunnel: Tunnelled::to(port),
            dir,
            _server: server,
        }
    }

    fn options(&self) -> Vec<String> {
        let pair = |name: &str, value: String| ["-o".to_owned(), format!("{name}={value}")];
        [
            pair("IdentityFile", self.dir.join("user").display().to_string()),
            pair("IdentitiesOnly", "yes".into()),
            pair("StrictHostKeyChecking", "no".into()),
            pair(
                "UserKnownHostsFile",
                self.dir.join("known").display().to_string(),
            ),
            pair("LogLevel", "ERROR".into()),
            pair("Port", self.tunnel.port.to_string()),
            pair("BatchMode", "yes".into()),
        ]
        .concat()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(tool(program, "openssh-client"));
        command.arg("-F").arg("none").args(self.options());
        command
    }
}

/// Whom to log in as: the one who runs the test.
fn login() -> String {
    let output = ok(Command::new("id").arg("-un"));
    format!(
        "{}@127.0.0.1",
        String::from_utf8_lossy(&output.stdout).trim()
    )
}

#[test]
fn ssh_sessions_and_scp_work() {
    let _alone = alone();
    let ssh = Ssh::start();
    let login = login();
    // A command, its output, its exit code.
    let output = ssh
        .command("ssh")
        .args([&login, "echo out; echo err >&2; exit 7"])
        .stdin(Stdio::null())
        .output()
        .expect("ssh");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );

    // A terminal: what is typed comes back, line by line, as a person would see it.
    let mut child = ssh
        .command("ssh")
        .args(["-tt", &login, "PS1='> ' exec sh"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("ssh");
    let screen = Log::follow(child.stdout.take().expect("piped"));
    let mut keys: ChildStdin = child.stdin.take().expect("piped");
    for n in 1..=5 {
        writeln!(keys, "echo answer $((6 * {n}))").expect("type");
        // The echo of what was typed shows the sum, the answer its result.
        screen.wait(&format!("answer {}", 6 * n), PATIENCE);
        assert!(
            screen.count(0, &format!("echo answer $((6 * {n}))")) >= 1,
            "echoed"
        );
    }
    writeln!(keys, "exit 3").expect("type");
    let status = eventually(PATIENCE, "ssh to end", || child.try_wait().expect("wait"));
    assert_eq!(status.code(), Some(3));

    // Copies, both ways, by both of scp's protocols.
    let n = if full() { 256 } else { 48 } * MIB;
    let source = ssh.dir.join("source");
    file_of(&source, 2, n);
    let wanted = hash_of(&source);
    for (protocol, name) in [("-O", "old"), ("-s", "sftp")] {
        let there: PathBuf = ssh.dir.join(&format!("there-{name}"));
        let back: PathBuf = ssh.dir.join(&format!("back-{name}"));
        let remote = format!("{login}:{}", there.display());
        let start = Instant::now();
        ok(ssh
            .command("scp")
            .args([protocol, "-q"])
            .arg(&source)
            .arg(&remote));
        let up = seconds(start);
        assert_eq!(hash_of(&there), wanted, "{name}, up");
        let start = Instant::now();
        ok(ssh
            .command("scp")
            .args([protocol, "-q"])
            .arg(&remote)
            .arg(&back));
        assert_eq!(hash_of(&back), wanted, "{name}, down");
        figure(
            "scp",
            format_args!(
                "{name}: {} MiB up in {up:.2} s, down in {:.2} s",
                n / MIB,
                seconds(start)
            ),
        );
    }
}

#[test]
fn redis_benchmark_runs_through() {
    let _alone = alone();
    let dir = TempDir::new();
    let port = free_port();
    let mut command = Command::new(tool("redis-server", "redis-server"));
    command.current_dir(dir.path()).args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    let _redis = Program::start("redis", &mut command);
    wait_for_port(port);
    let tunnel = Tunnelled::to(port);
    // Fifty connections that ask and wait; and fifty that send sixteen requests at a time.
    for (pipeline, requests) in [("1", 20_000), ("16", 100_000)] {
        let mut command = Command::new(tool("redis-benchmark", "redis-tools"));
        command.args([
            "-p",
            &tunnel.port.to_string(),
            "-c",
            "50",
            "--csv",
            "-t",
            "set,get,lpush",
        ]);
        command.args([
            "-n",
            &requests.to_string(),
            "-P",
            pipeline,
            "-d",
            "200",
            "-r",
            "1000",
        ]);
        let output = Program::run(&mut command, Duration::from_secs(60));
        assert_eq!(output.code, Some(0), "{output:?}");
        let mut rates = Vec::new();
        for line in output.out.lines().filter(|line| !line.contains("\"test\"")) {
            let mut cells = line.split(',').map(|cell| cell.trim_matches('"'));
            let name = cells.next().unwrap_or_default().to_owned();
            let rate: f64 = cells
                .next()
                .and_then(|cell| cell.parse().ok())
                .unwrap_or(0.0);
            assert!(rate > 100.0, "{line}");
            rates.push(format!("{name} {rate:.0}/s"));
        }
        assert_eq!(rates.len(), 3, "{}", output.out);
        figure(
            "redis-benchmark",
            format_args!("pipeline {pipeline}: {}", rates.join(", ")),
        );
    }
    // What was written is what is there.
    let cli = |arguments: &[&str]| {
        let output = ok(Command::new(tool("redis-cli", "redis-tools"))
            .args(["-p", &tunnel.port.to_string()])
            .args(arguments));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(cli(&["set", "k", "said through the tunnel"]), "OK");
    assert_eq!(cli(&["get", "k"]), "said through the tunnel");
    let live = || {
        cli(&["info", "clients"])
            .contains("connected_clients:1")
            .then_some(())
    };
    eventually(PATIENCE, "the benchmark's connections to be gone", live);
}

/// The answer to a key (RFC 6455, 4.2.2), by somebody else's SHA-1.
fn accept_of(key: &str) -> String {
    let script = "printf %s \"$1\"258EAFA5-E914-47DA-95CA-C5AB0DC85B11 | openssl dgst -sha1 -binary | openssl base64";
    let output = ok(Command::new("sh").args(["-c", script, "sh", key]));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn header<'h>(head: &'h str, name: &str) -> &'h str {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
        .unwrap_or_else(|| panic!("no {name} in {head}"))
}

/// One WebSocket frame, final; masked as a client must.
fn web_frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        n @ 0..=125 => frame.push(bit | n as u8),
        n @ 126..=0xFFFF => {
            frame.push(bit | 126);
            frame.extend((n as u16).to_be_bytes());
        }
        n => {
            frame.push(bit | 127);
            frame.extend((n as u64).to_be_bytes());
        }
    }
    frame.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    frame
}

fn read_web_frame(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let len = match head[1] & 0x7F {
        126 => {
            let mut n = [0; 2];
            stream.read_exact(&mut n)?;
            u64::from(u16::from_be_bytes(n))
        }
        127 => {
            let mut n = [0; 8];
            stream.read_exact(&mut n)?;
            u64::from_be_bytes(n)
        }
        n => n.into(),
    };
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        stream.read_exact(&mut mask)?;
    }
    let mut payload = vec![0; len as usize];
    stream.read_exact(&mut payload)?;
    for (byte, m) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= m;
    }
    Ok((head[0] & 0x0F, payload))
}

#[test]
fn a_web_socket_upgrades_and_echoes() {
    let service = Service::start(|mut stream| {
        let head = read_head(&mut stream)?;
        assert_eq!(header(&head, "Upgrade"), "websocket");
        let accept = accept_of(header(&head, "Sec-WebSocket-Key"));
        write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )?;
        loop {
            let (opcode, payload) = read_web_frame(&mut stream)?;
            // A ping is answered with a pong, a close with a close.
            let answer = if opcode == 9 { 10 } else { opcode };
            stream.write_all(&web_frame(answer, &payload, None))?;
            if opcode == 8 {
                return Ok(());
            }
        }
    });
    let tunnel = Tunnelled::to(service.port());
    let mut socket = connect((Ipv4Addr::LOCALHOST, tunnel.port));
    // The example of RFC 6455, 1.3.
    write!(
        socket,
        "GET /chat HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .expect("request");
    let head = read_head(&mut socket).expect("answer");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(
        header(&head, "Sec-WebSocket-Accept"),
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    let mut bytes = Bytes::new(9);
    for n in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let payload = bytes.take(n);
        let mask = [1, 2, 3, n as u8];
        socket
            .write_all(&web_frame(2, &payload, Some(mask)))
            .expect("send");
        let (opcode, back) = read_web_frame(&mut socket).expect("back");
        assert!(opcode == 2 && back == payload, "{n} bytes came back wrong");
    }
    socket
        .write_all(&web_frame(9, b"still there?", Some([9; 4])))
        .expect("ping");
    assert_eq!(
        read_web_frame(&mut socket).expect("pong"),
        (10, b"still there?".to_vec())
    );
    socket
        .write_all(&web_frame(8, &1000u16.to_be_bytes(), Some([7; 4])))
        .expect("close");
    assert_eq!(
        read_web_frame(&mut socket).expect("close"),
        (8, vec![3, 232])
    );
    assert_eq!(socket.read(&mut [0]).expect("end"), 0);
}
