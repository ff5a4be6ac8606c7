//! End-to-end tests: whole programs over loopback. One binary; a line per room says what belongs there.

/// Small machines: little memory, nothing to write to, no clock, no network yet.
mod boards;
/// Error codes: who says them, and what `explain` says about them.
mod codes;
/// What the link between client and server can do on a bad day, and what both programs make of it.
mod cuts;
/// What `doctor` finds, with the fault there and without, and that it disturbs nobody.
mod doctor;
/// Programs that are killed, stopped and hung up on under load, by default settings, and how long that is felt.
mod faults;
/// The forward tunnel with services of this process: traffic, ends, certificates, servers that come and go.
mod forward;
/// How its connections end when somebody cuts, damages or kills.
mod forward_cuts;
/// The forward tunnel with other people's TLS at one end of it: who can stand where our programs stand.
mod forward_peers;
/// Connections that are kept ready for whoever may come.
mod forward_ready;
/// The forward tunnel with peers that break one rule each: what the log says, and what the application sees.
mod forward_wrong_peers;
/// The inputs that fuzzing starts from, without fuzzing.
mod fuzz_corpus;
/// Clients with a key who want more than their share, and visitors who come in crowds.
mod greedy;
/// What strangers can try before they are anybody.
mod hostile;
/// Log files beside stdout: rotation, SIGHUP, full disks; levels and formats.
mod logs;
/// What the programs hold under load, and what is left of it.
mod memory;
/// The programs as a person or a service manager meets them: arguments, files, signals, exit codes, log texts.
mod programs;
/// Many connections that do little: visitors that never read, connections that rest.
mod readers;
/// Faults that were found, and must not come back.
mod regressions;
/// The reverse tunnel with services of this process: every shape of traffic, every way a connection ends.
mod reverse;
/// What the programs tell a service manager, and what `service` gives to each.
mod service_manager;
/// The reverse tunnel with other people's programs at both ends.
mod services;
/// Data channels that are there before their visitor, and serve again after him.
mod spares;
/// The files of `tests/vectors`, made by a second implementation of the wire.
mod vectors;
