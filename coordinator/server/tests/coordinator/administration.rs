//! What administrators can do, and who they are.

use std::io::BufRead as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use ghostwire_proto::v1;
use tonic::Code;

use crate::harness::{Files, Machine, OPEN, Server, key_request, mode, needs_root};

#[tokio::test]
async fn users_are_made_listed_and_deleted() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let user = admin.user("alice@example.com").await;
    assert_eq!((user.name.as_str(), user.role.as_str()), ("alice", "user"));
    let create = |email: &str, role: &str| v1::CreateUserRequest {
        email: email.to_owned(),
        role: role.to_owned(),
        ..Default::default()
    };
    let code = admin.0.create_user(create("alice@example.com", "")).await.unwrap_err().code();
    assert_eq!(code, Code::AlreadyExists);
    for (email, role) in [("alice", ""), ("a b@x.com", ""), ("bob@x.com", "king"), ("", "")] {
        let refused = admin.0.create_user(create(email, role)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{email} {role}");
    }
    let (join_key, _) = admin.key(key_request("alice@example.com")).await;
    Machine::new("web").enroll(&join_key).await.unwrap();
    let delete = v1::DeleteUserRequest { email: "alice@example.com".to_owned() };
    let refused = admin.0.delete_user(delete.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("web"), "{refused}");
    admin.delete("web").await;
    admin.0.delete_user(delete.clone()).await.unwrap();
    assert_eq!(admin.0.delete_user(delete).await.unwrap_err().code(), Code::NotFound);
    assert!(admin.0.list_auth_keys(v1::ListAuthKeysRequest {}).await.unwrap().into_inner().keys.is_empty());
    assert!(admin.0.list_users(v1::ListUsersRequest {}).await.unwrap().into_inner().users.is_empty());
}

#[tokio::test]
async fn nodes_are_renamed_and_tagged() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    Machine::new("web").enroll(&join_key).await.unwrap();
    let machine = Machine::new("db");
    machine.enroll(&join_key).await.unwrap();
    let update = |node: &str, name: Option<&str>, tags: Option<&[&str]>| v1::UpdateNodeRequest {
        node: node.to_owned(),
        name: name.map(str::to_owned),
        tags: tags.map(|tags| v1::TagList { tags: tags.iter().map(|tag| (*tag).to_owned()).collect() }),
        approved_routes: None,
    };
    let node =
        admin.0.update_node(update("db", Some("postgres"), Some(&["tag:db"]))).await.unwrap().into_inner();
    assert_eq!(
        (node.name.as_str(), node.tags.as_slice(), node.user.as_str()),
        ("postgres", &["tag:db".to_owned()][..], "")
    );
    for (request, code) in [
        (update("postgres", Some("web"), None), Code::AlreadyExists),
        (update("postgres", Some("Not A Name"), None), Code::InvalidArgument),
        (update("postgres", None, Some(&["db"])), Code::InvalidArgument),
        (update("nobody", None, None), Code::NotFound),
    ] {
        assert_eq!(admin.0.update_node(request).await.unwrap_err().code(), code);
    }
    // An administrator's name stays, whatever the machine calls itself.
    assert_eq!(machine.enroll(&join_key).await.unwrap().name, "postgres");
    let by_id = update(&node.id.to_string(), Some("db"), None);
    assert_eq!(admin.0.update_node(by_id).await.unwrap().into_inner().name, "db");
}

#[tokio::test]
async fn a_refused_policy_changes_nothing_and_history_is_kept() {
    let server = Server::start();
    let mut admin = server.admin().await;
    admin.user("alice@example.com").await;
    let first = admin.0.get_policy(v1::GetPolicyRequest::default()).await.unwrap().into_inner();
    assert_eq!((first.version, first.author.as_str()), (1, "system"));

    let refused =
        admin.set_policy("{\n  \"acls\": [{\"action\": \"deny\"}],\n  \"nonsense\": 1}").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("nonsense") && refused.message().contains('2'), "{refused}");
    let failing = r#"{"acls": [], "tests": [{"src": "alice@example.com", "accept": ["100.64.0.2:22"]}]}"#;
    let refused = admin.set_policy(failing).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let check = v1::SetPolicyRequest { content: OPEN.to_owned(), check_only: true, expected_version: 0 };
    assert_eq!(admin.0.set_policy(check).await.unwrap().into_inner().version, 1);
    assert_eq!(admin.0.get_policy(v1::GetPolicyRequest::default()).await.unwrap().into_inner(), first);

    assert_eq!(admin.set_policy(OPEN).await.unwrap().version, 2);
    let stale = v1::SetPolicyRequest { content: "{}".to_owned(), check_only: false, expected_version: 1 };
    assert_eq!(admin.0.set_policy(stale).await.unwrap_err().code(), Code::Aborted);
    let versions =
        admin.0.list_policy_versions(v1::ListPolicyVersionsRequest {}).await.unwrap().into_inner().versions;
    assert_eq!(versions.iter().map(|v| v.version).collect::<Vec<_>>(), [2, 1]);
    let old = admin.0.get_policy(v1::GetPolicyRequest { version: 1 }).await.unwrap().into_inner();
    assert_eq!(old, first);
    assert_eq!(
        admin.0.get_policy(v1::GetPolicyRequest { version: 9 }).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn flows_are_explained() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    for name in ["one", "two"] {
        Machine::new(name).enroll(&join_key).await.unwrap();
    }
    admin
        .set_policy("{\"acls\": [\n {\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:22\"]}]}")
        .await
        .unwrap();
    let ask =
        |port| v1::ExplainFlowRequest { src: "one".to_owned(), dst: "two".to_owned(), protocol: 6, port };
    let yes = admin.0.explain_flow(ask(22)).await.unwrap().into_inner();
    assert!(yes.allowed && yes.json.contains("\"line\":2"), "{yes:?}");
    assert!(!admin.0.explain_flow(ask(23)).await.unwrap().into_inner().allowed);
    let unknown = v1::ExplainFlowRequest { src: "three".to_owned(), ..ask(22) };
    assert_eq!(admin.0.explain_flow(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn the_status_tells_what_there_is() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let stream = Machine::new("one").join(&join_key).await;
    let status = admin.0.status(v1::ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.nodes, status.nodes_online, status.users, status.policy_version), (1, 1, 1, 1));
    assert_eq!(status.ca_fingerprint, join_key.ca.as_bytes());
    assert_eq!(status.advertised, [server.address.to_string()]);
    assert!(status.problems.is_empty());
    drop(stream);
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_and_no_secret_is() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    Machine::new("web").enroll(&join_key).await.unwrap();
    admin.set_policy(OPEN).await.unwrap();
    admin.delete("web").await;
    drop(admin);
    let files = server.terminate().await;
    let database = rusqlite::Connection::open(files.state().join("state.db")).unwrap();
    let mut statement = database.prepare("SELECT actor, action, target FROM audit_log ORDER BY id").unwrap();
    let rows: Vec<(String, String, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let actions: Vec<&str> = rows.iter().map(|(_, action, _)| action.as_str()).collect();
    assert_eq!(actions, ["user.create", "key.create", "node.enroll", "policy.set", "node.delete"]);
    assert_eq!(rows[0].0, format!("uid:{}", nix::unistd::getuid()));

    let exposed = join_key.auth_key.expose();
    let secret = exposed.split_once('.').unwrap().1;
    for file in std::fs::read_dir(files.state()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[tokio::test]
async fn files_and_socket_are_private() {
    let server = Server::start();
    let files = server.files();
    assert_eq!(mode(&files.state()), 0o700);
    for file in ["ca.key", "ca.pem", "state.db", "state.db-wal", "lock"] {
        assert_eq!(mode(&files.state().join(file)), 0o600, "{file}");
    }
    let has_group = nix::unistd::Group::from_name("ghostwire").unwrap().is_some();
    assert_eq!(mode(&files.socket()), if has_group { 0o660 } else { 0o600 });
}

#[tokio::test]
async fn another_user_is_turned_away_even_where_the_mode_would_let_it_in() {
    needs_root("to become somebody else");
    let server = Server::start();
    let socket = server.files().socket();
    for path in [server.files().folder.path(), &socket] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // A bridge that runs as user nobody: the kernel tells the server who is at the other end, which is the bridge.
    let bridge_socket = server.files().folder.path().join("bridge.sock");
    let script = "import os, socket, sys, threading
door = socket.socket(socket.AF_UNIX); door.bind(sys.argv[2]); door.listen(); print('ready', flush=True)
def pump(a, b):
    while data := a.recv(65536): b.sendall(data)
    b.shutdown(socket.SHUT_WR)
while True:
    near, _ = door.accept(); far = socket.socket(socket.AF_UNIX); far.connect(sys.argv[1])
    for pair in (near, far), (far, near): threading.Thread(target=pump, args=pair, daemon=True).start()";
    let mut bridge = Command::new("python3")
        .args(["-c", script])
        .args([&socket, &bridge_socket])
        .uid(65_534)
        .gid(65_534)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    std::io::BufReader::new(bridge.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let channel = ghostwire_proto::channel::unix(&bridge_socket).await.unwrap();
    let refused =
        v1::admin_service_client::AdminServiceClient::new(channel).status(v1::ServerStatusRequest {}).await;
    bridge.kill().unwrap();
    bridge.wait().unwrap();
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    assert!(server.admin().await.0.status(v1::ServerStatusRequest {}).await.is_ok());
}

#[tokio::test]
async fn a_second_server_on_the_same_state_is_refused() {
    let server = Server::start();
    let output = server.files().command("127.0.0.1:0").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("another ghostwire-server uses the state directory"), "{error}");
    // Another state directory, the same socket.
    let other = Files::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ghostwire-server"));
    command.args(["run", "--listen", "127.0.0.1:0", "--state-dir"]).arg(other.state());
    let output = command.arg("--socket").arg(server.files().socket()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("another ghostwire-server serves"), "{error}");
    assert!(server.admin().await.0.status(v1::ServerStatusRequest {}).await.is_ok());
}
