//! An nginx that serves a folder, with PUT.

use std::fs;
use std::process::Command;

use crate::{Program, TempDir, free_port, tool, wait_for_port};

/// nginx over `root` in this folder; its port.
pub fn nginx(dir: &TempDir) -> (Program, u16) {
    let port = free_port();
    let root = dir.join("root");
    fs::create_dir_all(&root).expect("mkdir");
    let at = |name: &str| dir.join(name).display().to_string();
    // One process, which ends with the test: a killed master would leave its workers behind. And as root
    // it would give its files to a user who cannot look into the folder.
    let config = format!(
        "user root; daemon off; master_process off; pid {}; error_log {} warn;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {}; proxy_temp_path {}; fastcgi_temp_path {}; \
         uwsgi_temp_path {}; scgi_temp_path {};\n\
         server {{ listen 127.0.0.1:{port}; root {}; client_max_body_size 0; \
         location / {{ dav_methods PUT; }} }} }}\n",
        at("nginx.pid"),
        at("error.log"),
        at("body"),
        at("proxy"),
        at("fastcgi"),
        at("uwsgi"),
        at("scgi"),
        root.display(),
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config).expect("write");
    let mut command = Command::new(tool("nginx", "nginx-light"));
    command.arg("-e").arg(dir.join("error.log"));
    command.arg("-c").arg(file);
    let program = Program::start("nginx", &mut command);
    wait_for_port(port);
    (program, port)
}
