//! A folder with keys, an allow list and configurations, and the programs started in it.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use minitcptunnel_common::identity::IdentityKey;
use serde_json::{Value, json};

use crate::program::binary;
use crate::{PATIENCE, Program, connect};

/// A temporary folder; removed when dropped, kept when the test fails.
pub struct TempDir(PathBuf);

impl TempDir {
    /// A new empty folder.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = std::env::temp_dir().join(format!(
            "mtt-e2e-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::SeqCst)
        ));
        fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    /// The path of `name` in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Its own path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for TempDir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// One server's and one client's identity, and the folder they live in.
pub struct World {
    /// The folder.
    pub dir: TempDir,
    /// The server's identity, also in `server_identity_key.hex`.
    pub server_key: IdentityKey,
    /// The client's identity, also in `allowed_clients.txt`.
    pub client_key: IdentityKey,
}

impl World {
    /// A world with fresh keys.
    pub fn new() -> Self {
        let world = Self {
            dir: TempDir::new(),
            server_key: IdentityKey::generate().expect("random bytes"),
            client_key: IdentityKey::generate().expect("random bytes"),
        };
        let key = world.dir.join("server_identity_key.hex");
        fs::write(&key, world.server_key.seed_hex().as_bytes()).expect("write");
        private(&key);
        world.allow(&[&world.client_key]);
        world
    }

    /// Writes the allow list.
    pub fn allow(&self, keys: &[&IdentityKey]) {
        let mut text = String::from("# who may connect\n");
        for (n, key) in keys.iter().enumerate() {
            text += &format!("{} client-{n}\n", key.public());
        }
        fs::write(self.dir.join("allowed_clients.txt"), text).expect("write");
    }

    /// A server about to be started: loopback, a free control port, everything else as it comes.
    pub fn server(&self) -> ServerSetup<'_> {
        ServerSetup {
            world: self,
            config: json!({ "bind": "127.0.0.1", "port": 0 }),
            arguments: vec!["-v".into()],
            before: Before::default(),
        }
    }

    /// A client of the server on `port`, with this world's client identity and impatient backoff.
    pub fn client(&self, port: u16) -> ClientSetup<'_> {
        ClientSetup {
            world: self,
            config: json!({
                "server_host": "127.0.0.1",
                "server_port": port,
                "server_pub_key": self.server_key.public().to_string(),
                "identity_private_key_hex": self.client_key.seed_hex().as_str(),
                "tunnels": [],
                "timeouts": { "backoff_min": 0.05, "backoff_max": 0.2 },
            }),
            arguments: vec!["-v".into()],
            file: "client_config.json".into(),
            before: Before::default(),
        }
    }
}

/// `unshare` with these options.
fn unshare(options: &[&str]) -> Vec<String> {
    let words = ["unshare"].iter().chain(options);
    words.map(|&word| word.to_owned()).collect()
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets `value` at a dotted path of `config`.
fn set(config: &mut Value, path: &str, value: Value) {
    let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
    let mut at = config;
    for name in parents.split('.').filter(|name| !name.is_empty()) {
        at = &mut at[name];
    }
    at[last] = value;
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// A server's configuration and arguments.
pub struct ServerSetup<'w> {
    world: &'w World,
    config: Value,
    arguments: Vec<String>,
    before: Before,
}

/// What a shell does before it becomes the program, so that the process id is the program's.
#[derive(Default)]
struct Before {
    /// Words in front of the shell (`unshare -m`).
    front: Vec<String>,
    /// The shell's commands.
    commands: Vec<String>,
}

impl Before {
    fn command(&self, program: PathBuf) -> Command {
        if self.front.is_empty() && self.commands.is_empty() {
            return Command::new(program);
        }
        let mut words = self.front.iter().map(String::as_str).chain(["sh", "-c"]);
        let mut command = Command::new(words.next().expect("there is the shell"));
        let mut all = self.commands.clone();
        all.push("exec \"$0\" \"$@\"".into());
        command.args(words).arg(all.join(" && ")).arg(program);
        command
    }
}

impl ServerSetup<'_> {
    /// Sets a key, by its dotted path.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        set(&mut self.config, path, value.into());
        self
    }

    /// Replaces the arguments (`-v`).
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|&a| a.to_owned()).collect();
        self
    }

    /// Gives the process no more than so many descriptors.
    #[must_use]
    pub fn descriptors(mut self, limit: u32) -> Self {
        self.before.commands.push(format!("ulimit -n {limit}"));
        self
    }

    /// Has a shell do this first, in the folder of the world: a limit, a mount, a variable.
    #[must_use]
    pub fn shell(mut self, command: &str) -> Self {
        self.before.commands.push(command.to_owned());
        self
    }

    /// Runs it in namespaces of its own, by the words of `unshare`'s options.
    #[must_use]
    pub fn unshare(mut self, options: &[&str]) -> Self {
        self.before.front = unshare(options);
        self
    }

    /// Writes the configuration and makes the command.
    pub fn command(&self) -> Command {
        let dir = self.world.dir.path();
        let file = dir.join("server_config.json");
        fs::write(&file, self.config.to_string()).expect("write");
        let mut command = self.before.command(binary("minitcptunnel-server"));
        command
            .current_dir(dir)
            .arg("--config")
            .arg(&file)
            .args(&self.arguments);
        command
    }

    /// Starts it and waits until it listens.
    pub fn start(self) -> Server {
        let mut command = self.command();
        let program = Program::start("server", &mut command);
        let line = program.log.wait("Control Server listening on ", PATIENCE);
        let port = number_after(&line, "Control Server listening on ");
        Server { program, port }
    }
}

/// The number behind `text` in `line`.
fn number_after(line: &str, text: &str) -> u16 {
    let at = line.find(text).expect("the line was found by it") + text.len();
    let digits: String = line[at..]
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no port behind '{text}' in: {line}"))
}

/// A running server.
pub struct Server {
    /// The process.
    pub program: Program,
    /// Its control port.
    pub port: u16,
}

impl Server {
    /// Its control address.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

impl Deref for Server {
    type Target = Program;
    fn deref(&self) -> &Program {
        &self.program
    }
}

/// A client's configuration and arguments.
pub struct ClientSetup<'w> {
    world: &'w World,
    config: Value,
    arguments: Vec<String>,
    file: String,
    before: Before,
}

impl ClientSetup<'_> {
    /// Adds a tunnel that opens by itself.
    #[must_use]
    pub fn tunnel(mut self, id: &str, public: u16, local: u16) -> Self {
        let tunnels = self.config["tunnels"].as_array_mut().expect("a list");
        tunnels.push(json!({
            "id": id,
            "remote_port": public,
            "local_host": "127.0.0.1",
            "local_port": local,
            "auto_start": true,
        }));
        self
    }

    /// Sets a key, by its dotted path.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        set(&mut self.config, path, value.into());
        self
    }

    /// Sets a key of one of its tunnels.
    #[must_use]
    pub fn set_tunnel(mut self, tunnel: usize, key: &str, value: impl Into<Value>) -> Self {
        self.config["tunnels"][tunnel][key] = value.into();
        self
    }

    /// Uses another identity, and a configuration file of its own.
    #[must_use]
    pub fn identity(mut self, key: &IdentityKey) -> Self {
        self.config["identity_private_key_hex"] = json!(key.seed_hex().as_str());
        self.file = format!("client_{}.json", key.public().short());
        self
    }

    /// Heartbeats that notice a dead link after about a second, and short dials.
    #[must_use]
    pub fn hasty(self) -> Self {
        self.set("timeouts.heartbeat_interval", 0.5)
            .set("timeouts.heartbeat_timeout", 0.5)
            .set("timeouts.connect", 0.5)
            .set("timeouts.handshake", 0.3)
    }

    /// Replaces the arguments (`-v`).
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|&a| a.to_owned()).collect();
        self
    }

    /// Has a shell do this first, in the folder of the world: a limit, a mount, a variable.
    #[must_use]
    pub fn shell(mut self, command: &str) -> Self {
        self.before.commands.push(command.to_owned());
        self
    }

    /// Runs it in namespaces of its own, by the words of `unshare`'s options.
    #[must_use]
    pub fn unshare(mut self, options: &[&str]) -> Self {
        self.before.front = unshare(options);
        self
    }

    /// Writes the configuration; its path.
    pub fn write(&self) -> PathBuf {
        let file = self.world.dir.join(&self.file);
        let mut out = fs::File::create(&file).expect("create");
        out.write_all(self.config.to_string().as_bytes())
            .expect("write");
        private(&file);
        file
    }

    /// Writes the configuration and makes the command.
    pub fn command(&self) -> Command {
        let file = self.write();
        let mut command = self.before.command(binary("minitcptunnel-client"));
        command
            .current_dir(self.world.dir.path())
            .arg("--config")
            .arg(file)
            .args(&self.arguments);
        command
    }

    /// Starts it.
    pub fn start(self) -> Client {
        Client {
            program: Program::start("client", &mut self.command()),
        }
    }
}

/// A running client.
pub struct Client {
    /// The process.
    pub program: Program,
}

impl Client {
    /// Waits until `tunnel` is open; its public port.
    pub fn port_of(&self, tunnel: &str) -> u16 {
        self.port_from(0, tunnel).1
    }

    /// As [`port_of`](Self::port_of) from line `from` of the log on; where that line ends as well.
    pub fn port_from(&self, from: usize, tunnel: &str) -> (usize, u16) {
        let tunnel = minitcptunnel_common::id::TunnelId::new(tunnel).expect("short");
        let text = format!("Tunnel {tunnel} is open on server port ");
        let (at, line) = self.program.log.wait_from(from, &text, PATIENCE);
        (at, number_after(&line, &text))
    }
}

impl Deref for Client {
    type Target = Program;
    fn deref(&self) -> &Program {
        &self.program
    }
}

/// The common case: one server, one client, one tunnel named `t`, everything by default.
pub struct Tunnelled {
    // In this order they are dropped.
    /// The client.
    pub client: Client,
    /// The server.
    pub server: Server,
    /// The public port.
    pub port: u16,
    /// Keys and folder.
    pub world: World,
}

impl Tunnelled {
    /// A tunnel to the service on `local`.
    pub fn to(local: u16) -> Self {
        Self::with(local, |server| server, |client| client)
    }

    /// As [`to`](Self::to) with other settings.
    pub fn with(
        local: u16,
        server: impl FnOnce(ServerSetup<'_>) -> ServerSetup<'_>,
        client: impl FnOnce(ClientSetup<'_>) -> ClientSetup<'_>,
    ) -> Self {
        let world = World::new();
        let server = server(world.server()).start();
        let client = client(world.client(server.port).tunnel("t", 0, local)).start();
        let port = client.port_of("t");
        Self {
            client,
            server,
            port,
            world,
        }
    }

    /// A visitor.
    pub fn visit(&self) -> TcpStream {
        connect((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The `server` or the `client`.
    pub fn program(&mut self, who: &str) -> &mut Program {
        match who {
            "server" => &mut self.server.program,
            "client" => &mut self.client.program,
            _ => panic!("a tunnel has no program {who}"),
        }
    }
}
