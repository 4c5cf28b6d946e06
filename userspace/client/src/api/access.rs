//! Who may use the local API: root, and members of the group `ghostwire`.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

/// The group whose members may use the daemon.
pub const GROUP: &str = "ghostwire";

/// Number of the group, if this machine has it.
pub fn group() -> Option<u32> {
    Group::from_name(GROUP).ok().flatten().map(|group| group.gid.as_raw())
}

/// Checks the credentials of the process at the other end.
pub fn check(request: Request<()>) -> Result<Request<()>, Status> {
    let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let Some(credentials) = credentials else {
        return Err(Status::permission_denied("the kernel does not tell who is asking"));
    };
    if is_allowed(
        Uid::from_raw(credentials.uid()),
        Gid::from_raw(credentials.gid()),
        group().map(Gid::from_raw),
    ) {
        Ok(request)
    } else {
        Err(Status::permission_denied(format!(
            "user {} is neither root nor in the group {GROUP}; as root: usermod -aG {GROUP} USER",
            credentials.uid()
        )))
    }
}

fn is_allowed(user: Uid, primary: Gid, group: Option<Gid>) -> bool {
    // The daemon's own user is who it can be replaced by anyway.
    if user.is_root() || user == nix::unistd::geteuid() {
        return true;
    }
    let Some(group) = group else { return false };
    primary == group || supplementary(user, primary).contains(&group)
}

fn supplementary(user: Uid, primary: Gid) -> Vec<Gid> {
    let Ok(Some(account)) = User::from_uid(user) else { return Vec::new() };
    let Ok(name) = CString::new(account.name) else { return Vec::new() };
    getgrouplist(&name, primary).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_group_may_ask() {
        let (nobody, group) = (Uid::from_raw(65_534), Gid::from_raw(4_242));
        assert!(is_allowed(Uid::from_raw(0), Gid::from_raw(0), None));
        assert!(!is_allowed(nobody, Gid::from_raw(65_534), Some(group)));
        assert!(!is_allowed(nobody, Gid::from_raw(65_534), None));
        assert!(is_allowed(nobody, group, Some(group)));
    }
}
