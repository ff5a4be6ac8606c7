//! One TLS session: records in, plaintext out, and the other way round. No sockets, no locks.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncryptError, UnbufferedStatus};
use rustls::{CommonState, Error, ProtocolVersion};

use super::{Failure, lengthen};

/// Type, version and length in front of every record, in bytes.
pub(super) const HEADER: usize = 5;
/// The longest record there is, header included: 16 KiB and what version 1.2 allows a cipher to add.
pub(super) const RECORD_MAX: usize = HEADER + 16 * 1024 + 2048;
/// What sealing adds to each 16 KiB, at most: header, explicit nonce, inner type, tag.
const OVERHEAD: usize = HEADER + 8 + 1 + 16;
/// Safety: handshake messages that do not become whole, in bytes. rustls allows one of 64 KiB. Before the handshake is
/// done a client does not come near: see `handshake`, which bounds all that it sends until then.
const HELD_MAX: usize = 64 * 1024 + RECORD_MAX;

/// How many records of its own rustls can have to send when it fails; more than there ever are.
const WORDS_MAX: usize = 8;

/// How long the next record is, header included, once that can be said.
pub(super) fn record_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<HEADER>()?;
    Some(HEADER + usize::from(u16::from_be_bytes([header[3], header[4]])))
}

/// How much of what was received is to be opened next: a whole record, or nonsense that is for rustls to refuse.
/// `None`: more bytes are needed.
pub(super) fn next_record(pending: &[u8]) -> Option<usize> {
    let len = record_len(pending)?;
    if len <= pending.len() {
        return Some(len);
    }
    let is_tls = (20..=23).contains(&pending[0]) && pending[1] == 3;
    (!is_tls || len > RECORD_MAX).then_some(pending.len())
}

/// Room that so much plaintext takes when it is sealed.
pub(super) const fn sealed_len(plain: usize) -> usize {
    plain + (plain / (16 * 1024) + 1) * OVERHEAD
}

/// Which end we are.
pub(super) enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// A session, from its first byte to its last.
pub(super) struct Session {
    connection: Connection,
    /// Parts of a handshake message: rustls points into them until it is whole.
    held: Vec<u8>,
    /// Sealed by rustls of its own accord; goes out in front of whatever is sealed next.
    pub(super) queue: Vec<u8>,
    /// One of the halves is sending what was sealed: nobody else may.
    pub(super) sending: bool,
    /// The peer has sent its close_notify.
    pub(super) closed: bool,
    /// The peer has sent plaintext.
    pub(super) heard: bool,
    /// Why the source has failed.
    pub(super) last_word: Option<Failure>,
    /// Something was wrong; rustls is not to be asked again.
    failed: Option<Error>,
}

/// What a turn of rustls is for.
enum Want<'a> {
    /// To open what it was given.
    Open(&'a mut Vec<u8>),
    /// To seal this, behind so many bytes of a buffer.
    Seal(&'a [u8], &'a mut Vec<u8>, &'a mut usize),
    /// To seal the end.
    Close(&'a mut Vec<u8>, &'a mut usize),
}

impl Session {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            held: Vec::new(),
            queue: Vec::new(),
            sending: false,
            closed: false,
            heard: false,
            last_word: None,
            failed: None,
        }
    }

    pub(super) fn state(&self) -> &CommonState {
        match &self.connection {
            Connection::Client(client) => client,
            Connection::Server(server) => server,
        }
    }

    /// Whether an alert may be about our certificate: with TLS 1.3 the client's handshake is done before the server
    /// has looked at that.
    pub(super) fn may_be_refused(&self) -> bool {
        let version = self.state().protocol_version();
        self.is_client() && version == Some(ProtocolVersion::TLSv1_3) && !self.heard
    }

    pub(super) fn is_client(&self) -> bool {
        matches!(self.connection, Connection::Client(_))
    }

    /// How much of unfinished handshake messages is kept, in bytes.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Begins: a client has the first word.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        self.open(&mut [], &mut Vec::new())
    }

    /// Opens one record; what it says is added to `plain`. When something is wrong with it, the queue
    /// has an alert that says so.
    pub(super) fn open(&mut self, record: &mut [u8], plain: &mut Vec<u8>) -> Result<(), Error> {
        if self.held.is_empty() {
            let used = self.run(record, &mut Want::Open(plain))?;
            self.held.reserve_exact(record.len() - used);
            self.held.extend_from_slice(&record[used..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            // Strangers can have this kept a thousandfold, so it is not rounded up.
            held.reserve_exact(record.len());
            held.extend_from_slice(record);
            let used = self.run(&mut held, &mut Want::Open(plain))?;
            held.drain(..used);
            self.held = held;
        }
        if self.held.len() > HELD_MAX {
            return Err(self.fail(Error::General("handshake messages without an end".into())));
        }
        if self.held.is_empty() || self.closed {
            self.held = Vec::new();
        }
        Ok(())
    }

    /// Seals `plain` into `out` behind the first `end` bytes, and the queue in front of it.
    pub(super) fn seal(
        &mut self,
        plain: &[u8],
        out: &mut Vec<u8>,
        end: &mut usize,
    ) -> Result<(), Error> {
        self.write(Want::Seal(plain, out, end))
    }

    /// The same with the end of our direction.
    pub(super) fn close(&mut self, out: &mut Vec<u8>, end: &mut usize) -> Result<(), Error> {
        self.write(Want::Close(out, end))
    }

    fn write(&mut self, mut want: Want<'_>) -> Result<(), Error> {
        // It looks for messages there first, and must find what it remembers.
        let mut held = std::mem::take(&mut self.held);
        let result = self.run(&mut held, &mut want);
        self.held = held;
        result.map(drop)
    }

    /// Lets rustls work until it wants more. How much of `input` it needs no longer.
    fn run(&mut self, input: &mut [u8], want: &mut Want<'_>) -> Result<usize, Error> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        let mut used = 0;
        loop {
            match self.turn(&mut input[used..], want) {
                (n, Ok(go_on)) => {
                    used += n;
                    if !go_on {
                        return Ok(used);
                    }
                }
                (n, Err(e)) => {
                    used += n;
                    self.failed = Some(e.clone());
                    // The alert. With nothing to send rustls would look at the input again.
                    for _ in 0..WORDS_MAX {
                        if !self.state().wants_write() {
                            break;
                        }
                        let (n, _) = self.turn(&mut input[used..], want);
                        used += n;
                    }
                    return Err(e);
                }
            }
        }
    }

    /// One turn; whether another is due.
    fn turn(&mut self, input: &mut [u8], want: &mut Want<'_>) -> (usize, Result<bool, Error>) {
        let (queue, closed) = (&mut self.queue, &mut self.closed);
        match &mut self.connection {
            Connection::Client(client) => {
                handle(client.process_tls_records(input), want, queue, closed)
            }
            Connection::Server(server) => {
                handle(server.process_tls_records(input), want, queue, closed)
            }
        }
    }

    fn fail(&mut self, e: Error) -> Error {
        self.failed = Some(e.clone());
        e
    }
}

/// What to do in the state that rustls is in.
fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    want: &mut Want<'_>,
    queue: &mut Vec<u8>,
    closed: &mut bool,
) -> (usize, Result<bool, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let go_on = state.and_then(|state| match (state, want) {
        (ConnectionState::EncodeTlsData(mut tls), _) => {
            let at = queue.len();
            let n = fitting(queue, at, 0, |room| match tls.encode(room) {
                Err(rustls::unbuffered::EncodeError::InsufficientSize(e)) => Err(e.required_size),
                other => Ok(other.unwrap_or(0)),
            });
            queue.truncate(at + n);
            Ok(true)
        }
        (ConnectionState::TransmitTlsData(tls), _) => {
            tls.done();
            Ok(true)
        }
        (ConnectionState::ReadTraffic(mut records), Want::Open(plain)) => {
            while let Some(record) = records.next_record() {
                plain.extend_from_slice(record?.payload);
            }
            Ok(true)
        }
        (ConnectionState::PeerClosed, _) => {
            *closed = true;
            Ok(true)
        }
        (ConnectionState::WriteTraffic(mut tls), Want::Seal(plain, out, end)) => {
            put_first(queue, out, end);
            let mut result = Ok(());
            **end += fitting(out, **end, sealed_len(plain.len()), |room| {
                sealed(tls.encrypt(plain, room), &mut result)
            });
            result.map(|()| false)
        }
        (ConnectionState::WriteTraffic(mut tls), Want::Close(out, end)) => {
            put_first(queue, out, end);
            let mut result = Ok(());
            **end += fitting(out, **end, OVERHEAD + 2, |room| {
                sealed(tls.queue_close_notify(room), &mut result)
            });
            result.map(|()| false)
        }
        (ConnectionState::ReadEarlyData(_), _) => {
            Err(Error::General("early data was never offered".into()))
        }
        // Nothing more to do without more input.
        (ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake, Want::Open(_))
        | (ConnectionState::Closed, _) => Ok(false),
        // Plaintext is opened, and lent, before anybody else has the session; and nobody seals before
        // the handshake is done.
        _ => Err(Error::HandshakeNotComplete),
    });
    (discard, go_on)
}

/// Moves the queue behind the first `end` bytes of `out`.
fn put_first(queue: &mut Vec<u8>, out: &mut Vec<u8>, end: &mut usize) {
    if !queue.is_empty() {
        lengthen(out, *end + queue.len());
        out[*end..*end + queue.len()].copy_from_slice(queue);
        *end += queue.len();
        *queue = Vec::new();
    }
}

/// Writes behind the first `at` bytes of a buffer, with as much room as it turns out to take.
fn fitting(
    buffer: &mut Vec<u8>,
    at: usize,
    guess: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>,
) -> usize {
    lengthen(buffer, at + guess);
    loop {
        match write(&mut buffer[at..]) {
            Ok(n) => return n,
            Err(required) => lengthen(buffer, at + required),
        }
    }
}

/// The outcome of sealing as [`fitting`] wants it.
fn sealed(
    outcome: Result<usize, EncryptError>,
    result: &mut Result<(), Error>,
) -> Result<usize, usize> {
    match outcome {
        Ok(n) => Ok(n),
        Err(EncryptError::InsufficientSize(e)) => Err(e.required_size),
        Err(EncryptError::EncryptExhausted) => {
            *result = Err(Error::EncryptError);
            Ok(0)
        }
    }
}
