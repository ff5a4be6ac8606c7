//! What two ends agree on beyond the original's wire (PROTOCOL.md E1).
//!
//! ```text
//!  client: first Heartbeat, "MTT?fin,reason,..."      server: Heartbeat, "MTT!" and what both know
//!  an original echoes the offer unchanged, which is not an answer
//! ```

/// What both ends of a session may use beyond the original's wire (section 8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// E2: the authenticated end of each direction.
    pub fin: bool,
    /// E3: reasons before a control channel is closed.
    pub reason: bool,
    /// E4: reason and port in TunnelStatus.
    pub status: bool,
    /// E5: the visitor's address in IncomingConn.
    pub visitor: bool,
    /// E6: compression in OpenTunnel.
    pub options: bool,
    /// E7: RefuseConn.
    pub refuse: bool,
    /// E9: spare data channels, and data channels that serve again. Only together with `fin`.
    pub spare: bool,
}

const OFFER: &[u8] = b"MTT?";
const ANSWER: &[u8] = b"MTT!";
const CAPABILITIES_MAX: usize = 1024;

impl Capabilities {
    /// Everything this version knows.
    pub const ALL: Self = Self {
        fin: true,
        reason: true,
        status: true,
        visitor: true,
        options: true,
        refuse: true,
        spare: true,
    };

    /// The client's offer: the payload of its first Heartbeat (E1).
    pub fn offer(self) -> Vec<u8> {
        self.write(OFFER)
    }

    /// The server's answer to an offer.
    pub fn answer(self) -> Vec<u8> {
        self.write(ANSWER)
    }

    /// What a client offers, or `None` when this is an ordinary Heartbeat.
    pub fn read_offer(payload: &[u8]) -> Option<Self> {
        Self::read(OFFER, payload)
    }

    /// What a server answers, or `None` when this is an ordinary Heartbeat or an echo.
    pub fn read_answer(payload: &[u8]) -> Option<Self> {
        Self::read(ANSWER, payload)
    }

    /// What both sides know.
    pub fn and(self, other: Self) -> Self {
        Self {
            fin: self.fin && other.fin,
            reason: self.reason && other.reason,
            status: self.status && other.status,
            visitor: self.visitor && other.visitor,
            options: self.options && other.options,
            refuse: self.refuse && other.refuse,
            // Without an authenticated end nobody knows when a channel is free again.
            spare: self.spare && other.spare && self.fin && other.fin,
        }
    }

    fn table(&mut self) -> [(&'static str, &mut bool); 7] {
        [
            ("fin", &mut self.fin),
            ("reason", &mut self.reason),
            ("status", &mut self.status),
            ("visitor", &mut self.visitor),
            ("options", &mut self.options),
            ("refuse", &mut self.refuse),
            ("spare", &mut self.spare),
        ]
    }

    fn write(mut self, prefix: &[u8]) -> Vec<u8> {
        let names: Vec<&str> = self
            .table()
            .into_iter()
            .filter(|(_, known)| **known)
            .map(|(name, _)| name)
            .collect();
        [prefix, names.join(",").as_bytes()].concat()
    }

    fn read(prefix: &[u8], payload: &[u8]) -> Option<Self> {
        let list = payload
            .strip_prefix(prefix)
            .filter(|_| payload.len() <= CAPABILITIES_MAX)?;
        let list = std::str::from_utf8(list).ok()?;
        let valid = |name: &str| {
            (1..=32).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let mut found = Self::default();
        if list.is_empty() {
            return Some(found);
        }
        for name in list.split(',') {
            if !valid(name) {
                return None;
            }
            for (known, flag) in found.table() {
                if known == name {
                    *flag = true;
                }
            }
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_agreed_and_an_echo_is_not_an_answer() {
        let offer = Capabilities::ALL.offer();
        assert_eq!(Capabilities::read_offer(&offer), Some(Capabilities::ALL));
        assert_eq!(Capabilities::read_answer(&offer), None);
        assert_eq!(
            Capabilities::read_answer(&Capabilities::ALL.answer()),
            Some(Capabilities::ALL)
        );
        let some = Capabilities::read_offer(b"MTT?fin,future-thing-2").unwrap();
        assert_eq!(
            some,
            Capabilities {
                fin: true,
                ..Capabilities::default()
            }
        );
        assert_eq!(some.and(Capabilities::ALL), some);
        let alone = Capabilities::read_offer(b"MTT?spare").unwrap();
        assert!(
            alone.spare && !alone.and(Capabilities::ALL).spare,
            "without fin"
        );
        for odd in [
            &b""[..],
            b"MTT",
            b"MTT?FIN",
            b"MTT?fin,,reason",
            b"MTT?a b",
            b"hello",
            b"MTT?\xff",
        ] {
            assert_eq!(Capabilities::read_offer(odd), None, "{odd:?}");
        }
        let long = [b"MTT?".to_vec(), vec![b'a'; 2000]].concat();
        assert_eq!(Capabilities::read_offer(&long), None);
    }
}
