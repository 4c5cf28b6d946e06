//! Who may administer: root, the user that the server runs as, and the group `ghostwire`. The socket's mode says
//! the same; the kernel's word about the peer is checked again, and goes into the audit log.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

/// The group whose members may administer.
const GROUP: &str = "ghostwire";

/// Who may administer.
#[derive(Clone, Debug)]
pub struct Access {
    own: u32,
    group: Option<Gid>,
}

impl Access {
    /// As this system's users and groups are.
    pub fn of_this_system() -> Self {
        let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
        Self { own: Uid::effective().as_raw(), group }
    }

    /// The group that the socket belongs to, if the system has it.
    pub fn group(&self) -> Option<Gid> {
        self.group
    }

    /// Lets a request through or refuses it.
    pub fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let allowed = credentials.is_some_and(|peer| {
            peer.uid() == 0 || peer.uid() == self.own || self.is_member(peer.uid(), peer.gid())
        });
        if allowed {
            Ok(request)
        } else {
            Err(Status::permission_denied(format!(
                "only root and members of the group {GROUP} may administer this coordinator"
            )))
        }
    }

    fn is_member(&self, uid: u32, gid: u32) -> bool {
        let Some(group) = self.group else { return false };
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return group.as_raw() == gid };
        let Ok(name) = std::ffi::CString::new(user.name) else { return false };
        group.as_raw() == gid || getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
    }
}

/// Who asks, for the audit log.
pub(super) fn actor(extensions: &tonic::Extensions) -> String {
    let credentials = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    credentials.map_or_else(|| "unknown".to_owned(), |peer| format!("uid:{}", peer.uid()))
}
