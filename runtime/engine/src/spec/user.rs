//! Who a container's processes are: from the configuration, the image's USER, and its `/etc/passwd` and `/etc/group`.

use crate::EngineError;
use crate::container::{SecurityContext, SupplementalGroupsPolicy};
use crate::sandbox::{IdMapping, UserNamespace};

/// Ids beyond this are refused, as in containerd and Docker: they wrap somewhere.
const LARGEST: u64 = i32::MAX as u64;
/// More supplementary groups than the kernel takes.
const GROUPS: usize = 65_536;

/// The accounts of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    users: Vec<User>,
    groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, `gid` among them.
    pub groups: Vec<u32>,
    /// Home directory by `/etc/passwd`.
    pub home: Option<String>,
}

impl Accounts {
    /// Reads the two files; lines that make no sense are skipped.
    pub fn parse(passwd: &[u8], group: &[u8]) -> Self {
        let number =
            |text: &str| text.parse::<u64>().ok().filter(|id| *id <= LARGEST).and_then(|id| u32::try_from(id).ok());
        let users = String::from_utf8_lossy(passwd)
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
                Some(User { name: (*name).to_owned(), uid: number(uid)?, gid: number(gid)?, home: (*home).to_owned() })
            })
            .collect();
        let groups = String::from_utf8_lossy(group)
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let [name, _, gid, members, ..] = fields.as_slice() else { return None };
                let members = members.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
                Some(Group { name: (*name).to_owned(), gid: number(gid)?, members })
            })
            .collect();
        Self { users, groups }
    }
}

/// Resolves a container's user. Digits are always a number, never a name, and never too big.
///
/// # Errors
/// [`EngineError::Invalid`] for a number that is too big or a name that the image does not know;
/// [`EngineError::RunsAsRoot`].
pub fn resolve(security: &SecurityContext, image_user: &str, accounts: &Accounts) -> Result<Identity, EngineError> {
    let asked = match (security.run_as_user, &security.run_as_username) {
        (Some(_), Some(_)) => {
            return Err(EngineError::invalid("runAsUser", "a user id and a user name are given, only one can be"));
        }
        (Some(uid), None) => uid.to_string(),
        (None, Some(name)) if name.contains(':') => {
            return Err(EngineError::invalid("runAsUserName", format!("{name:?} is not a user name")));
        }
        (None, Some(name)) => name.clone(),
        (None, None) => image_user.to_owned(),
    };
    let (user, group) = match asked.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (asked.as_str(), None),
    };
    if group == Some("") {
        return Err(EngineError::invalid("user", format!("{asked:?} has an empty group")));
    }
    let (uid, entry) = find_user(user, &asked, accounts)?;
    let gid = match (security.run_as_group, group) {
        (Some(gid), _) if u64::from(gid) > LARGEST => return Err(too_big("runAsGroup", &gid.to_string())),
        (Some(gid), _) => gid,
        (None, Some(group)) => find_group(group, accounts)?,
        (None, None) => entry.map_or(0, |entry| entry.gid),
    };
    if security.run_as_non_root && uid == 0 {
        return Err(EngineError::RunsAsRoot { user: if asked.is_empty() { "0".to_owned() } else { asked } });
    }
    let mut groups = vec![gid];
    if let (SupplementalGroupsPolicy::Merge, Some(entry)) = (security.supplemental_groups_policy, entry) {
        let member = |group: &&Group| group.members.contains(&entry.name);
        groups.extend(accounts.groups.iter().filter(member).map(|group| group.gid));
    }
    groups.extend(&security.supplemental_groups);
    if let Some(big) = groups.iter().find(|gid| u64::from(**gid) > LARGEST) {
        return Err(too_big("supplementalGroups", &big.to_string()));
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    groups.truncate(GROUPS);
    let home = entry.map(|entry| entry.home.clone()).filter(|home| home.starts_with('/'));
    Ok(Identity { uid, gid, groups, home })
}

/// Refuses ids that a pod with users of its own does not have.
pub(super) fn check(identity: &Identity, users: &UserNamespace) -> Result<(), EngineError> {
    let UserNamespace::Pod { uid_maps, gid_maps } = users else { return Ok(()) };
    let has = |maps: &[IdMapping], id: u32| {
        maps.iter().any(|row| id.checked_sub(row.container).is_some_and(|offset| offset < row.length))
    };
    let refused = |field: &str, id: u32, maps: &[IdMapping]| {
        let last = maps.iter().map(|row| row.container.saturating_add(row.length.saturating_sub(1))).max();
        let last = last.unwrap_or_default();
        EngineError::invalid(field, format!("{id} is not among the pod's own users and groups, which end at {last}"))
    };
    if !has(uid_maps, identity.uid) {
        return Err(refused("runAsUser", identity.uid, uid_maps));
    }
    if !has(gid_maps, identity.gid) {
        return Err(refused("runAsGroup", identity.gid, gid_maps));
    }
    match identity.groups.iter().find(|gid| !has(gid_maps, **gid)) {
        Some(gid) => Err(refused("supplementalGroups", *gid, gid_maps)),
        None => Ok(()),
    }
}

fn find_user<'a>(user: &str, asked: &str, accounts: &'a Accounts) -> Result<(u32, Option<&'a User>), EngineError> {
    if user.is_empty() && asked.is_empty() {
        return Ok((0, accounts.users.iter().find(|entry| entry.uid == 0)));
    }
    match id(user, "user")? {
        Some(uid) => Ok((uid, accounts.users.iter().find(|entry| entry.uid == uid))),
        None => {
            let entry = accounts.users.iter().find(|entry| entry.name == user && !user.is_empty());
            let entry = entry
                .ok_or_else(|| EngineError::invalid("user", format!("{user:?} is not in the image's /etc/passwd")))?;
            Ok((entry.uid, Some(entry)))
        }
    }
}

fn find_group(group: &str, accounts: &Accounts) -> Result<u32, EngineError> {
    if let Some(gid) = id(group, "group")? {
        return Ok(gid);
    }
    let entry = accounts.groups.iter().find(|entry| entry.name == group);
    entry
        .map(|entry| entry.gid)
        .ok_or_else(|| EngineError::invalid("user", format!("group {group:?} is not in the image's /etc/group")))
}

/// A number; `None` for a name; an error for something that looks like a number and cannot be one.
fn id(text: &str, field: &str) -> Result<Option<u32>, EngineError> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned.is_empty() || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    let number = text.parse::<u64>().ok().filter(|number| *number <= LARGEST && unsigned == text);
    number.and_then(|number| u32::try_from(number).ok()).map(Some).ok_or_else(|| too_big(field, text))
}

fn too_big(field: &str, text: &str) -> EngineError {
    EngineError::invalid(field, format!("{text:?} is not an id between 0 and {LARGEST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            b"root:x:0:0:root:/root:/bin/sh\nweb:x:100:101:w:/var/www:/bin/false\n2147483648:x:0:0::/:\nbad line\nbig:x:99999999999:0::/:\n",
            b"root:x:0:\nweb:x:101:\naudio:x:29:web,other\nvideo:x:44:web\n",
        )
    }

    fn resolved(user: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let security = SecurityContext { supplemental_groups: vec![7, 29], ..SecurityContext::default() };
        resolve(&security, user, &accounts()).map(|id| (id.uid, id.gid, id.groups)).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_user_is_a_number_or_a_name_with_or_without_group() {
        assert_eq!(resolved("").unwrap(), (0, 0, vec![0, 7, 29]));
        assert_eq!(resolved("web").unwrap(), (100, 101, vec![101, 29, 44, 7]));
        assert_eq!(resolved("100").unwrap(), (100, 101, vec![101, 29, 44, 7]));
        assert_eq!(resolved("100:0").unwrap(), (100, 0, vec![0, 29, 44, 7]));
        assert_eq!(resolved("web:audio").unwrap(), (100, 29, vec![29, 44, 7]));
        assert_eq!(resolved("5555").unwrap(), (5555, 0, vec![0, 7, 29]));
    }

    #[test]
    fn what_is_no_id_and_no_name_never_becomes_root() {
        for user in [
            "nobody",
            "4294967296",
            "2147483648",
            "2147483648:0",
            "99999999999",
            "-1",
            "+0",
            ":5",
            "1x",
            "0:",
            "big",
            "web:none",
        ] {
            assert!(resolved(user).is_err(), "{user}");
        }
    }

    #[test]
    fn strict_groups_are_those_of_the_configuration() {
        let security = SecurityContext {
            run_as_user: Some(100),
            run_as_group: Some(3),
            supplemental_groups: vec![5],
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict,
            ..SecurityContext::default()
        };
        let identity = resolve(&security, "root", &accounts()).unwrap();
        assert_eq!((identity.uid, identity.gid, identity.groups), (100, 3, vec![3, 5]));
        assert_eq!(identity.home.as_deref(), Some("/var/www"));
    }

    #[test]
    fn root_is_refused_however_it_is_called() {
        let security = SecurityContext { run_as_non_root: true, ..SecurityContext::default() };
        for user in ["", "0", "root", "00"] {
            assert!(matches!(resolve(&security, user, &accounts()), Err(EngineError::RunsAsRoot { .. })), "{user}");
        }
        assert_eq!(resolve(&security, "web", &accounts()).unwrap().uid, 100);
    }

    #[test]
    fn a_pod_with_users_of_its_own_has_no_others() {
        let map = vec![IdMapping { container: 0, host: 200_000, length: 65_536 }];
        let users = UserNamespace::Pod { uid_maps: map.clone(), gid_maps: map };
        let identity = |uid, gid, group| Identity { uid, gid, groups: vec![gid, group], home: None };
        check(&identity(65_535, 0, 65_535), &users).unwrap();
        check(&identity(70_000, 70_000, 70_000), &UserNamespace::Node).unwrap();
        for (field, refused) in [
            ("runAsUser", identity(65_536, 0, 0)),
            ("runAsGroup", identity(0, 70_000, 0)),
            ("supplementalGroups", identity(0, 0, 70_000)),
        ] {
            let error = check(&refused, &users).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains("65535"), "{error}");
        }
    }
}
