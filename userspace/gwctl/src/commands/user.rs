//! `gwctl user`

use ghostwire_proto::v1::{CreateUserRequest, DeleteUserRequest, ListUsersRequest};
use serde_json::json;

use super::Context;
use crate::cli::UserCommand;
use crate::connect;
use crate::exit::{Failure, Outcome};
use crate::output::json::User;
use crate::output::table::{Table, text, whole};
use crate::output::units::date;

pub(super) async fn run(context: &Context, command: UserCommand) -> Outcome {
    let mut server = connect::server(&context.global.server_socket).await?;
    match command {
        UserCommand::List => {
            let answer = server.list_users(ListUsersRequest {}).await;
            let users =
                answer.map_err(|status| Failure::of_status("list the users", &status))?.into_inner().users;
            let users: Vec<User> = users.iter().map(User::from).collect();
            context.output.either(&json!({ "users": users }), || {
                let mut table = Table::new(
                    &context.output,
                    &[whole("LOGIN"), text("NAME"), whole("ROLE"), text("CREATED")],
                );
                for user in &users {
                    table.row(
                        [&user.email, &user.name, &user.role, &date(user.created_unix_ms)]
                            .map(String::as_str),
                    );
                }
                table.render("No users yet: `gwctl user create LOGIN` adds one.")
            })
        }
        UserCommand::Create { email, name, role } => {
            let doing = format!("create user {email}");
            let answer = server.create_user(CreateUserRequest { email, name, role }).await;
            let user = answer.map_err(|status| Failure::of_status(&doing, &status))?.into_inner();
            let user = User::from(&user);
            context.output.either(&user, || {
                format!(
                    "User {} is there. A key for a machine: gwctl key create --user {}",
                    user.email, user.email
                )
            })
        }
        UserCommand::Delete { email } => {
            let answer = server.delete_user(DeleteUserRequest { email: email.clone() }).await;
            answer.map_err(|status| Failure::of_status(&format!("delete user {email}"), &status))?;
            context.output.either(&json!({ "deleted": email }), || format!("User {email} is deleted."))
        }
    }
}
