//! A registry that does what a test tells it to, faults included.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What stands for a body without an end: far more than any bound, and less than a machine's memory.
const ENDLESS: u64 = 1 << 29;

/// One answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send only this much of the body, then close.
    pub cut_at: Option<usize>,
    /// Honour `Range`.
    pub ranges: bool,
    /// Promise this length instead of the true one; the body repeats until then.
    pub endless: bool,
    /// Send one byte of the body after each such time.
    pub trickle: Option<Duration>,
    /// Send so many bytes of the body in each millisecond.
    pub paced: Option<usize>,
    /// Send nothing before this many answers that share it were asked for.
    pub together: Option<Arc<Barrier>>,
    /// Be away for so long from then on, as one that starts anew: nobody listens, and no connection stays.
    pub away: Option<Duration>,
}

impl Answer {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: body.into(),
            cut_at: None,
            ranges: false,
            endless: false,
            trickle: None,
            paced: None,
            together: None,
            away: None,
        }
    }

    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

#[derive(Default)]
struct Script {
    /// By path; the last answer of a list stays.
    answers: BTreeMap<String, Vec<Answer>>,
    requests: Vec<Request>,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    /// All of them, in order, with names in small letters.
    pub headers: Vec<(String, String)>,
    /// What came with it, when that is short.
    pub body: String,
}

/// Serves on 127.0.0.1 until the test ends.
#[derive(Clone)]
pub struct Scripted {
    pub port: u16,
    script: Arc<Mutex<Script>>,
    endless_bytes: Arc<AtomicU64>,
    sending: Arc<Sending>,
    away_until: Arc<Mutex<Option<Instant>>>,
}

/// Paced answers under way, now and at most.
#[derive(Default)]
struct Sending {
    now: AtomicU64,
    most: AtomicU64,
}

impl Sending {
    fn begin(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn end(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Scripted {
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    /// The same on another address of this machine.
    pub fn start_at(address: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let this = Self {
            port: listener.local_addr().unwrap().port(),
            script: Arc::default(),
            endless_bytes: Arc::default(),
            sending: Arc::default(),
            away_until: Arc::default(),
        };
        this.on("/v2/", Answer::ok("{}"));
        let serving = this.clone();
        std::thread::spawn(move || {
            let mut listener = listener;
            loop {
                let Ok((stream, _)) = listener.accept() else { continue };
                if let Some(away) = serving.away_for() {
                    // Nobody may listen, nor wait to be let in.
                    drop((stream, listener));
                    std::thread::sleep(away);
                    listener = TcpListener::bind((address, serving.port)).unwrap();
                    continue;
                }
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        this
    }

    pub fn on(&self, path: &str, answer: Answer) {
        self.script.lock().unwrap().answers.entry(path.to_owned()).or_default().push(answer);
    }

    /// From now on this is the only answer.
    pub fn replace(&self, path: &str, answer: Answer) {
        self.script.lock().unwrap().answers.insert(path.to_owned(), vec![answer]);
    }

    /// These come before what was said already.
    pub fn before(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        let mut script = self.script.lock().unwrap();
        let list = script.answers.entry(path.to_owned()).or_default();
        list.splice(..0, answers);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.script.lock().unwrap().requests.clone()
    }

    /// How much of bodies without an end was taken from it.
    pub fn endless_bytes(&self) -> u64 {
        self.endless_bytes.load(Ordering::Relaxed)
    }

    /// How many paced answers were under way at once, at most.
    pub fn most_at_once(&self) -> u64 {
        self.sending.most.load(Ordering::SeqCst)
    }

    fn away_for(&self) -> Option<Duration> {
        let until = (*self.away_until.lock().unwrap())?;
        until.checked_duration_since(Instant::now())
    }

    /// Returns when nobody listens any more.
    fn go_away(&self, address: SocketAddr, how_long: Duration) {
        *self.away_until.lock().unwrap() = Some(Instant::now() + how_long);
        while TcpStream::connect(address).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let method = line.split(' ').next().unwrap_or_default().to_owned();
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let mut request =
                Request { method, path, authorization: None, range: None, headers: Vec::new(), body: String::new() };
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
                    break;
                }
                let (name, value) = header.trim().split_once(':').unwrap();
                request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                match name.to_ascii_lowercase().as_str() {
                    "authorization" => request.authorization = Some(value.trim().to_owned()),
                    "range" => request.range = Some(value.trim().to_owned()),
                    _ => {}
                }
            }
            let length = request.headers.iter().find(|(name, _)| name == "content-length");
            let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().unwrap())];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            if body.len() < 1 << 10 {
                request.body = String::from_utf8_lossy(&body).into_owned();
            }
            if self.away_for().is_some() || !self.answer(&mut stream, request) {
                return;
            }
        }
    }

    fn answer(&self, stream: &mut TcpStream, request: Request) -> bool {
        let answer = {
            let mut script = self.script.lock().unwrap();
            script.requests.push(request.clone());
            let bare = request.path.split('?').next().unwrap().to_owned();
            match script.answers.get_mut(&bare) {
                Some(list) if list.len() > 1 => list.remove(0),
                Some(list) => list[0].clone(),
                None => Answer::status(404),
            }
        };
        if let Some(together) = &answer.together {
            together.wait();
        }
        if let Some(how_long) = answer.away {
            self.go_away(stream.local_addr().unwrap(), how_long);
        }
        let (mut status, mut body) = (answer.status, answer.body.clone());
        if let (true, Some(range)) = (answer.ranges, &request.range) {
            let (from, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            if !last.is_empty() {
                body.truncate(last.parse::<usize>().unwrap() + 1);
            }
            body = body.split_off(body.len().min(from.parse().unwrap()));
            status = 206;
        }
        let length = if answer.endless { 1 << 40 } else { body.len() };
        let mut head = format!("HTTP/1.1 {status} X\r\n");
        if !answer.endless {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        } else {
            head.push_str("Connection: close\r\n");
        }
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        if stream.write_all(head.as_bytes()).is_err() {
            return false;
        }
        if answer.endless {
            let block = vec![b' '; 1 << 16];
            let mut sent = 0;
            while sent < ENDLESS && stream.write_all(&block).is_ok() {
                sent += block.len() as u64;
                self.endless_bytes.fetch_add(block.len() as u64, Ordering::Relaxed);
            }
            return false;
        }
        if let Some(pause) = answer.trickle {
            for byte in &body {
                std::thread::sleep(pause);
                if stream.write_all(&[*byte]).is_err() {
                    return false;
                }
            }
            return true;
        }
        if let Some(bytes) = answer.paced {
            let (mut whole, begun) = (true, Instant::now());
            self.sending.begin();
            for (number, block) in (1..).zip(body.chunks(bytes)) {
                whole = whole && stream.write_all(block).is_ok();
                std::thread::sleep((begun + Duration::from_millis(number)).saturating_duration_since(Instant::now()));
            }
            self.sending.end();
            return whole;
        }
        let end = answer.cut_at.unwrap_or(body.len()).min(body.len());
        let whole = stream.write_all(&body[..end]).is_ok() && end == body.len() && answer.away.is_none();
        if !whole {
            let _ = stream.flush();
            let _ = stream.shutdown(std::net::Shutdown::Both);
            let _ = stream.read(&mut [0]);
        }
        whole
    }
}
