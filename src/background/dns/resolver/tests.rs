//! Which servers are asked under which names, and for how long.

use super::*;

fn told(name: &str, text: &str) -> Vec<Name> {
    Config::new(text, &[]).names(name)
}

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().map(|text| Name::new(text).expect("a name")).collect()
}

#[test]
fn a_name_with_few_dots_is_looked_for_below_the_search_domains_first() {
    let text = "search shop.svc.cluster.local svc.cluster.local\noptions ndots:5 rotate edns0";
    let pay = ["pay.shop.svc.cluster.local", "pay.svc.cluster.local", "pay"];
    assert_eq!(told("pay", text), names(&pay));
    let text = text.replace("ndots:5", "ndots:2");
    let api =
        ["api.pay.example", "api.pay.example.shop.svc.cluster.local", "api.pay.example.svc.cluster.local"];
    assert_eq!(told("api.pay.example", &text), names(&api));
    assert_eq!(told("api.pay.example.", &text), names(&["api.pay.example"]));
    assert_eq!(told("pay", ""), names(&["pay"]));
    let long = "a.".repeat(120) + "a";
    assert_eq!(told(&long, &text), names(&[&long]), "one that is too long means nothing");
    assert!(told("a..b", &text).is_empty());
}

#[test]
fn the_file_says_who_is_asked_unless_somebody_else_does() {
    let of = |text: &str, given: &[&str]| {
        let given: Vec<_> = given.iter().map(|server| server.parse().expect("an address")).collect();
        let Config { servers, search, ndots, patience, attempts } = Config::new(text, &given);
        let servers: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
        (servers.join(" "), search.join(" "), ndots, patience.as_secs(), attempts)
    };
    let told = |servers: &str, search: &str, ndots, patience, attempts| {
        (servers.to_owned(), search.to_owned(), ndots, patience, attempts)
    };
    assert_eq!(of("", &[]), told("127.0.0.1:53", "", 1, 3, 2), "as the system's resolver does");
    let text = "# a remark\nnameserver 10.0.0.10\nnameserver fd00::10\nnameserver nonsense\ndomain a.test\n\
                search b.test c.test ..\noptions ndots:99 timeout:30 attempts:0 timeout:x";
    assert_eq!(of(text, &[]), told("10.0.0.10:53 [fd00::10]:53", "b.test c.test", 15, 3, 1));
    assert_eq!(of(text, &["127.0.0.1:5353"]).0, "127.0.0.1:5353");
    assert_eq!(of(&"nameserver 10.0.0.1\n".repeat(100), &[]).0.split(' ').count(), MAX_SERVERS);
}

#[test]
fn hosts_are_read_line_by_line() {
    let read = hosts(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost # here\n#10.0.0.1 no\n10.0.0.2\tPay.Test\nx y\n",
    );
    let ips =
        |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>();
    assert_eq!(read.get("localhost"), Some(&ips(&["127.0.0.1", "::1"])));
    assert_eq!(
        (read.get("pay.test"), read.get("no"), read.get("y")),
        (Some(&ips(&["10.0.0.2"])), None, None)
    );
}

/// Nobody listens to what is sent there; how many questions came.
fn silence() -> (SocketAddr, impl Fn() -> usize) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    socket.set_nonblocking(true).expect("set");
    (address, move || std::iter::from_fn(|| socket.recv(&mut [0; 512]).ok()).count())
}

fn with_file(text: &str, servers: Vec<SocketAddr>) -> (Resolver, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    (Resolver::new(ResolverSettings { servers, file: file.path().into() }), file)
}

#[tokio::test(start_paused = true)]
async fn a_look_up_has_a_bound_however_much_there_is_to_ask() {
    let (silent, questions) = silence();
    let search: Vec<_> = (0..MAX_SEARCH).map(|number| format!("s{number}.test")).collect();
    let text = format!("search {}\noptions ndots:5 attempts:3 timeout:3", search.join(" "));
    let (resolver, _file) = with_file(&text, vec![silent; MAX_SERVERS]);
    let began = Instant::now();
    let held = Held { meant: None, passes: true };
    let found = resolver.look_up("pay", &held).await;
    let took = began.elapsed();
    assert!(took <= LONGEST_LOOK_UP + Duration::from_millis(50), "{took:?}");
    assert!(found.parts.iter().all(|part| matches!(part, Part::Failed(_))), "{found:?}");
    assert!(questions() >= 8, "it did ask");
}

#[test]
fn who_is_silent_leaves_time_for_those_behind() {
    // As Pods have it: three search domains, and the name itself.
    let mut left = LONGEST_LOOK_UP;
    for others in [3, 2, 1] {
        left -= share(left, others);
    }
    assert!(share(left, 0) >= Duration::from_secs(1), "{left:?}");
}

#[tokio::test]
async fn a_server_that_is_silent_is_asked_last_for_the_rest_of_a_look_up() {
    let (silent, questions) = silence();
    let (refusing, _) = answering(|_| None);
    let (resolver, _file) =
        with_file("search a.test b.test c.test\noptions ndots:5 timeout:2", vec![silent, refusing]);
    let found = resolver.look_up("pay", &Held::default()).await;
    assert!(found.parts.iter().all(|part| matches!(part, Part::Nothing(_))), "{found:?}");
    assert_eq!(questions(), 2, "A and AAAA of the first name");
}

/// A server; `says` what it does with each name: an address, none, or a failure.
fn answering(
    says: impl Fn(&str) -> Option<Result<[u8; 4], ()>> + Send + 'static,
) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    let thread = std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let mut answer = question[..length].to_vec();
            let labels = &answer[12..length - 5];
            let name: String =
                labels.iter().map(|byte| if *byte < 32 { '.' } else { char::from(*byte) }).collect();
            let is_v4 = answer[length - 3] == 1;
            (answer[2], answer[3]) = (0x81, 0x80);
            match says(name.trim_start_matches('.')) {
                Some(Ok(ip)) if is_v4 => {
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
                    answer.extend(ip);
                }
                Some(Ok(_)) => {}
                Some(Err(())) => answer[3] |= 2,
                None => answer[3] |= 3,
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    (address, thread)
}

#[tokio::test]
async fn while_a_name_that_is_meant_fails_nobody_takes_its_place() {
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_failing = Arc::clone(&fails);
    let (server, _) = answering(move |name| match name {
        "db.dev.svc.test" if is_failing.load(Ordering::Relaxed) => Some(Err(())),
        "db.dev.svc.test" => Some(Ok([10, 0, 0, 1])),
        "db.dev" => Some(Ok([192, 0, 2, 66])),
        _ => None,
    });
    let (resolver, _file) = with_file("search svc.test\noptions ndots:5", vec![server]);
    let found = async |held: &Held| {
        let found = resolver.look_up("db.dev", held).await;
        let addresses = match &found.parts[0] {
            Part::Addresses(addresses, _) => addresses.clone(),
            _ => Vec::new(),
        };
        (addresses, found.meant)
    };
    let (inside, outside) = (vec![IpAddr::from([10, 0, 0, 1])], vec![IpAddr::from([192, 0, 2, 66])]);
    let (addresses, meant) = found(&Held::default()).await;
    assert_eq!((addresses, &meant), (inside, &Name::new("db.dev.svc.test")));
    fails.store(true, Ordering::Relaxed);
    let held = Held { meant, passes: true };
    assert_eq!(found(&held).await, (Vec::new(), None), "what is known stays");
    assert_eq!(found(&Held::default()).await, (Vec::new(), None), "nor at first");
    let passes = Held { meant: None, passes: true };
    assert_eq!(found(&passes).await.0, outside, "the control: when nothing is known for long");
    let (absolute, meant) = (resolver.look_up("db.dev.", &Held::default()).await, Name::new("db.dev"));
    assert_eq!(absolute.meant, meant, "an absolute name means itself");
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_asked_for_by_tcp() {
    // What is free by UDP may be somebody's by TCP.
    let same_port = |_| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").ok()?;
        let listener = std::net::TcpListener::bind(socket.local_addr().ok()?).ok()?;
        Some((socket, listener))
    };
    let (socket, listener) = (0..100).find_map(same_port).expect("a port that is free by both");
    let address = socket.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut question = [0; 512];
        let (length, from) = socket.recv_from(&mut question).expect("a question");
        let mut cut = question[..length].to_vec();
        cut[2] = 0x83;
        socket.send_to(&cut, from).expect("sent");
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut asked = vec![0; length + 2];
        std::io::Read::read_exact(&mut stream, &mut asked).expect("a question");
        let mut answer = asked[2..].to_vec();
        (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, 1]);
        let length = (answer.len() as u16).to_be_bytes();
        std::io::Write::write_all(&mut stream, &[&length[..], &answer].concat()).expect("sent");
    });
    let said = ask(address, &Name::new("pay.test").expect("a name"), Family::V4).await.expect("an answer");
    assert_eq!(said, Said::Addresses(vec![[10, 0, 0, 1].into()], 30));
}

#[test]
fn a_family_without_a_way_is_left_out_only_beside_another() {
    let here: IpAddr = [127, 0, 0, 1].into();
    // Documentation's addresses: whether there is a way is this machine's affair.
    let far: IpAddr = "2001:db8::1".parse().expect("an address");
    assert_eq!(usable(vec![far]), [far]);
    assert_eq!(usable(vec![here, far]).contains(&far), has_way(far));
    assert!(usable(vec![here, far]).contains(&here));
}
