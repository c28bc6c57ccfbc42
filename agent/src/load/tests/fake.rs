//! A server that answers each command as a script says. Threads and sockets end with
//! the value.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What is done upon one command.
#[derive(Debug, Clone)]
pub enum Action {
    /// Answers.
    Reply(String),
    /// Answers (perhaps only half) and closes.
    Last(String),
    /// Says nothing.
    Silence,
}

pub fn ok() -> Action {
    Action::Reply("+OK\r\n".into())
}

pub fn error(text: impl std::fmt::Display) -> Action {
    Action::Reply(format!("-{text}\r\n"))
}

/// One command as it came.
#[derive(Debug)]
pub struct Request {
    /// Which connection of this server, from 0.
    pub conn: usize,
    /// Which command of this server, from 0.
    pub index: usize,
    /// Name and arguments.
    pub words: Vec<String>,
}

pub struct FakeServer {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    commands: AtomicUsize,
    open: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
    log: Mutex<Vec<Vec<String>>>,
}

impl FakeServer {
    pub fn start(script: impl Fn(Request) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        Self::serve(listener, script)
    }

    pub fn serve(listener: TcpListener, script: impl Fn(Request) -> Action + Send + Sync + 'static) -> Self {
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            commands: AtomicUsize::new(0),
            open: Mutex::default(),
            log: Mutex::default(),
        });
        let script = Arc::new(script);
        let ours = shared.clone();
        let accept = std::thread::spawn(move || {
            for (conn, stream) in listener.incoming().enumerate() {
                if ours.stop.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.expect("accepts");
                let ending = stream.try_clone().expect("clones");
                let (shared, script) = (ours.clone(), script.clone());
                let thread = std::thread::spawn(move || serve_one(conn, stream, &shared, &*script));
                ours.open.lock().expect("not poisoned").push((ending, thread));
            }
        });
        Self { addr, shared, accept: Some(accept) }
    }

    /// All commands so far.
    pub fn log(&self) -> Vec<Vec<String>> {
        self.shared.log.lock().expect("not poisoned").clone()
    }
}

fn serve_one(conn: usize, stream: TcpStream, shared: &Shared, script: &dyn Fn(Request) -> Action) {
    let mut writer = stream.try_clone().expect("clones");
    let mut reader = BufReader::new(stream);
    while let Some(words) = read_command(&mut reader) {
        let index = shared.commands.fetch_add(1, Ordering::SeqCst);
        shared.log.lock().expect("not poisoned").push(words.clone());
        let (reply, last) = match script(Request { conn, index, words }) {
            Action::Reply(reply) => (reply, false),
            Action::Last(reply) => (reply, true),
            Action::Silence => continue,
        };
        if writer.write_all(reply.as_bytes()).is_err() {
            return;
        }
        if last {
            let _ = writer.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn read_command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let count = read_number(reader, '*')?;
    (0..count)
        .map(|_| {
            let len = read_number(reader, '$')?;
            let mut bytes = vec![0; len + 2];
            reader.read_exact(&mut bytes).ok()?;
            assert_eq!(&bytes[len..], b"\r\n", "a bulk string's end");
            bytes.truncate(len);
            Some(String::from_utf8(bytes).expect("text"))
        })
        .collect()
}

fn read_number(reader: &mut impl BufRead, lead: char) -> Option<usize> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
    let number = line.strip_prefix(lead).and_then(|rest| rest.strip_suffix("\r\n"));
    Some(number.unwrap_or_else(|| panic!("{line:?} begins with {lead}")).parse().expect("a number"))
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.addr);
        if let Some(accept) = self.accept.take() {
            let _ = accept.join();
        }
        let open = std::mem::take(&mut *self.shared.open.lock().unwrap_or_else(|e| e.into_inner()));
        for (stream, thread) in open {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}
