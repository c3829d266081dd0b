//! The real program on port 0, over a folder of its own: a test says what stands in the files, asks, and looks.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing here takes longer on a busy machine; whoever waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.env_remove("PORTCULLIS_LOG").stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program starts")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asks again and again until `done` has something to give.
pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(began.elapsed() < PATIENCE, "gave up waiting for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A process of ours, ended with the test.
pub struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// Starts it and collects what it writes to stderr.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, lines) = (child.stderr.take().expect("piped"), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = lines.lock().expect("no panic holds it");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no panic holds it").clone()
    }

    /// What the kernel tells of it.
    pub fn told(&self) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string())
    }

    /// Seconds of CPU so far.
    pub fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(self.told().join("stat")).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
        (ticks(11) + ticks(12)) / 100.0
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(id.expect("a process has an id"), signal).expect("it runs");
    }

    /// Its stdout, which was piped, line by line.
    pub fn stdout(&mut self) -> BufReader<std::process::ChildStdout> {
        BufReader::new(self.child.stdout.take().expect("piped"))
    }

    /// What it wrote to stdout, once it has ended.
    pub fn output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        let mut stdout = self.child.stdout.take().expect("piped");
        stdout.read_to_end(&mut output).expect("readable");
        self.ended();
        output
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        until("the process to end", || self.child.try_wait().expect("it is ours"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the process ---\n{}", self.log());
        }
    }
}

/// A running gateway in file mode.
pub struct Gateway {
    pub process: Process,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub admin: SocketAddr,
    folder: tempfile::TempDir,
}

impl Gateway {
    /// With these files, ready.
    pub fn start(files: &[(&str, &str)]) -> Self {
        Self::with(files, &[])
    }

    /// With these arguments besides.
    pub fn with(files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        Self::over(folder, arguments)
    }

    /// Over a folder that the test has filled.
    pub fn over(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        Self::launched(program(), folder, arguments)
    }

    /// By a command that ends in the program.
    pub fn launched(mut command: Command, folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        command.arg("run").arg("--manifests").arg(folder.path());
        command.args(["--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        if !arguments.contains(&"--workers") {
            command.args(["--workers", "2"]);
        }
        command.args(arguments).stdout(Stdio::null());
        let mut process = Process::start(command);
        let [http, https, admin] = ["http", "https", "admin"].map(|listener| {
            until("its addresses", || {
                let ended = process.child.try_wait().expect("it is ours");
                assert!(ended.is_none(), "it ended with {ended:?}:\n{}", process.log());
                listening(&process.log(), listener)
            })
        });
        let gateway = Self { process, http, https, admin, folder };
        until("readiness", || (gateway.ask_admin("/readyz").status == 200).then_some(()));
        gateway
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a file as a careful writer does.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.path(name)).expect("renamed");
    }

    pub fn get(&self, host: &str, path: &str) -> Answer {
        self.request("GET", host, path, &[], "")
    }

    pub fn request(&self, method: &str, host: &str, path: &str, fields: &[&str], body: &str) -> Answer {
        exchange(connect(self.http), method, host, path, fields, body)
    }

    /// Over TLS under the name `host`, trusting `ca`.
    pub fn get_tls(&self, ca: &Path, host: &str, path: &str) -> std::io::Result<Answer> {
        let (mut stream, serial) = tls(self.https, ca, host)?;
        let mut answer = try_exchange(&mut stream, "GET", host, path, &[], "")?;
        answer.serial = Some(serial);
        Ok(answer)
    }

    /// Until the answer's status and body are so.
    pub fn until_answer(&self, host: &str, path: &str, status: u16, part: &str) -> Answer {
        until(&format!("{host}{path} to answer {status} {part}"), || {
            Some(self.get(host, path)).filter(|answer| answer.status == status && answer.body.contains(part))
        })
    }

    pub fn ask_admin(&self, path: &str) -> Answer {
        exchange(connect(self.admin), "GET", "admin", path, &[], "")
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ask_admin("/status").body).expect("JSON")
    }

    /// Until `/status` pleases.
    pub fn until_status(&self, what: &str, pleases: impl Fn(&Value) -> bool) -> Value {
        until(what, || Some(self.status()).filter(|status| pleases(status)))
    }
}

/// A backend: `portcullis echo` on a free port.
pub struct Backend {
    pub process: Process,
    pub address: SocketAddr,
}

impl Backend {
    pub fn start(name: &str) -> Self {
        Self::with(name, &[])
    }

    /// With these arguments besides.
    pub fn with(name: &str, arguments: &[&str]) -> Self {
        let mut command = program();
        command.args(["echo", "--listen", "127.0.0.1:0", "--name", name]).args(arguments);
        Self::launched(command)
    }

    /// By a command of the program's.
    pub fn launched(mut command: Command) -> Self {
        command.stdout(Stdio::piped());
        let mut process = Process::start(command);
        let mut line = String::new();
        let stdout = process.child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("echo ").expect("its address").parse().expect("an address");
        Self { process, address }
    }

    /// A GatewayBackend for it.
    pub fn manifest(&self, name: &str) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: {}, port: {}}}]}}\n---\n",
            self.address.ip(),
            self.address.port()
        )
    }
}

/// A GatewayRoute with this spec.
pub fn route(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{name: {name}, namespace: test}}\nspec: {spec}\n---\n"
    )
}

/// A route of one rule that answers with a text of its own.
pub fn responds(name: &str, host: &str, answer: &str) -> String {
    route(
        name,
        &format!("{{hostnames: [{host}], rules: [{{name: all, respond: {{status: 200, text: {answer}}}}}]}}"),
    )
}

fn listening(log: &str, listener: &str) -> Option<SocketAddr> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|event| event["message"] == "listening" && event["listener"] == listener)
        .and_then(|event| event["address"].as_str()?.parse().ok())
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    pub body: String,
    /// Of the server's certificate.
    pub serial: Option<Vec<u8>>,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

pub fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    host: &str,
    path: &str,
    fields: &[&str],
    body: &str,
) -> Answer {
    try_exchange(&mut stream, method, host, path, fields, body).expect("an answer")
}

/// One request, one answer, and the connection's end.
fn try_exchange(
    stream: &mut (impl Read + Write),
    method: &str,
    host: &str,
    path: &str,
    fields: &[&str],
    body: &str,
) -> std::io::Result<Answer> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for field in fields {
        head += &format!("{field}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    read_answer(stream)
}

/// What a request of any bytes is answered; it asks for the connection's end itself.
pub fn raw(address: SocketAddr, request: &str) -> Answer {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).expect("sent");
    read_answer(&mut stream).expect("an answer")
}

/// An answer up to the connection's end.
pub fn read_answer(stream: &mut impl Read) -> std::io::Result<Answer> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // A TLS close without close_notify is judged by what came.
        Err(error) if bytes.is_empty() || error.kind() != std::io::ErrorKind::UnexpectedEof => {
            return Err(error);
        }
        _ => {}
    }
    parse(&bytes).ok_or_else(|| std::io::Error::other(format!("no HTTP answer: {:?}", text(&bytes))))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let whole = text(bytes);
    let (head, body) = whole.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let fields: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked = fields.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Some(Answer { status, fields, body, serial: None })
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        if size == 0 {
            break;
        }
        body += &after[..size];
        rest = &after[size + 2..];
    }
    body
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A TLS connection under this name, and the serial number of the certificate that was shown.
pub fn tls(address: SocketAddr, ca: &Path, host: &str) -> std::io::Result<(Tls, Vec<u8>)> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("PEM")).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = host.to_owned().try_into().expect("a name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("a configuration");
    let mut socket = connect(address);
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    let shown = connection.peer_certificates().and_then(|chain| chain.first()).expect("a certificate");
    let (_, certificate) = x509_parser::parse_x509_certificate(shown).expect("X.509");
    let serial = certificate.raw_serial().to_vec();
    Ok((rustls::StreamOwned::new(connection, socket), serial))
}

/// A Secret with a fresh certificate, and its authority's file.
pub fn certificate(folder: &Path, name: &str, host: &str) -> (String, PathBuf) {
    let ca = folder.join(format!("{name}-ca.pem"));
    let output = run(&[
        "certificate",
        host,
        "--name",
        name,
        "--namespace",
        "test",
        "--ca",
        ca.to_str().expect("UTF-8"),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout) + "---\n", ca)
}
