//! What a container may do: users, capabilities, profiles and labels.

use portreeve_engine::{AppArmorProfile, SeccompProfile, SecurityContext, SelinuxOptions, SupplementalGroupsPolicy};
use tonic::Status;

use super::{invalid, v1};

pub(super) fn security(context: v1::LinuxContainerSecurityContext) -> Result<SecurityContext, Status> {
    let id = |field: &str, value: i64| {
        u32::try_from(value).map_err(|_| invalid(&format!("security_context.{field}"), format!("{value} is no id")))
    };
    let seccomp = seccomp(context.seccomp.clone(), deprecated_seccomp(&context))?;
    let apparmor = apparmor(context.apparmor.clone(), deprecated_apparmor(&context))?;
    let user = context.run_as_user.map(|user| id("run_as_user", user.value)).transpose()?;
    let group = context.run_as_group.map(|group| id("run_as_group", group.value)).transpose()?;
    if group.is_some() && user.is_none() && context.run_as_username.is_empty() {
        return Err(invalid("security_context.run_as_group", "needs run_as_user or run_as_username"));
    }
    let groups = context.supplemental_groups.iter().map(|group| id("supplemental_groups", *group));
    let supplemental_groups = groups.collect::<Result<_, _>>()?;
    let policy = context.supplemental_groups_policy();
    let capabilities = context.capabilities.unwrap_or_default();
    Ok(SecurityContext {
        run_as_user: user,
        run_as_group: group,
        run_as_username: Some(context.run_as_username).filter(|name| !name.is_empty()),
        run_as_non_root: false,
        supplemental_groups,
        supplemental_groups_policy: match policy {
            v1::SupplementalGroupsPolicy::Merge => SupplementalGroupsPolicy::Merge,
            v1::SupplementalGroupsPolicy::Strict => SupplementalGroupsPolicy::Strict,
        },
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        privileged: context.privileged,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        ambient_capabilities: capabilities.add_ambient_capabilities,
        // An empty list hides nothing: a kubelet says so of an unmasked /proc.
        masked_paths: Some(context.masked_paths),
        readonly_paths: Some(context.readonly_paths),
        seccomp,
        apparmor,
        selinux: context.selinux_options.map(selinux),
    })
}

pub(super) fn selinux(asked: v1::SeLinuxOption) -> SelinuxOptions {
    SelinuxOptions { user: asked.user, role: asked.role, kind: asked.r#type, level: asked.level }
}

#[allow(deprecated)] // Older clients say it there.
fn deprecated_apparmor(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.apparmor_profile
}

fn apparmor(profile: Option<v1::SecurityProfile>, old: &str) -> Result<AppArmorProfile, Status> {
    // Older clients put the prefix of the annotation here, too.
    let localhost = |name: &str| match name.strip_prefix("localhost/").unwrap_or(name) {
        "" => Err(invalid("security_context.apparmor.localhost_ref", "is empty")),
        name => Ok(AppArmorProfile::Localhost(name.to_owned())),
    };
    match profile {
        Some(profile) => match profile.profile_type() {
            v1::security_profile::ProfileType::RuntimeDefault => Ok(AppArmorProfile::RuntimeDefault),
            v1::security_profile::ProfileType::Unconfined => Ok(AppArmorProfile::Unconfined),
            v1::security_profile::ProfileType::Localhost => localhost(&profile.localhost_ref),
        },
        None => match old {
            "" | "runtime/default" => Ok(AppArmorProfile::RuntimeDefault),
            "unconfined" => Ok(AppArmorProfile::Unconfined),
            other if other.starts_with("localhost/") => localhost(other),
            other => Err(invalid("security_context.apparmor_profile", format!("{other:?} is not known"))),
        },
    }
}

#[allow(deprecated)] // Older clients say it there.
fn deprecated_seccomp(context: &v1::LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

pub(super) fn seccomp(profile: Option<v1::SecurityProfile>, old: &str) -> Result<SeccompProfile, Status> {
    const FIELD: &str = "security_context.seccomp.localhost_ref";
    let localhost = |path: &str| match path.starts_with('/') {
        true => Ok(SeccompProfile::Localhost(super::path(FIELD, path.to_owned())?)),
        false => Err(invalid(FIELD, format!("{path:?} is no absolute path"))),
    };
    match profile {
        Some(profile) => match profile.profile_type() {
            v1::security_profile::ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
            v1::security_profile::ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
            v1::security_profile::ProfileType::Localhost => localhost(&profile.localhost_ref),
        },
        None => match old {
            "" | "unconfined" => Ok(SeccompProfile::Unconfined),
            "runtime/default" | "docker/default" => Ok(SeccompProfile::RuntimeDefault),
            other => match other.strip_prefix("localhost/") {
                Some(path) => localhost(path),
                None => Err(invalid("security_context.seccomp_profile_path", format!("{other:?} is not known"))),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn with(change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Result<SecurityContext, Status> {
        let mut context = v1::LinuxContainerSecurityContext::default();
        change(&mut context);
        security(context)
    }

    #[test]
    fn a_group_needs_a_user_and_an_id_is_no_negative_number() {
        let number = |value| Some(v1::Int64Value { value });
        assert_eq!(with(|context| context.run_as_group = number(1)).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(with(|context| context.run_as_user = number(-1)).unwrap_err().code(), Code::InvalidArgument);
        assert!(with(|context| context.supplemental_groups = vec![1 << 40]).is_err());
        let both = with(|context| (context.run_as_user, context.run_as_group) = (number(1), number(2))).unwrap();
        assert_eq!((both.run_as_user, both.run_as_group), (Some(1), Some(2)));
        let named = with(|context| {
            context.run_as_username = "user".into();
            context.run_as_group = number(2);
        });
        assert_eq!(named.unwrap().run_as_username.as_deref(), Some("user"));
    }

    #[test]
    fn seccomp_is_what_the_profile_says_and_else_what_older_clients_say() {
        use v1::security_profile::ProfileType;
        let new = |kind: ProfileType, path: &str| {
            seccomp(Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() }), "unconfined")
        };
        assert_eq!(new(ProfileType::RuntimeDefault, "").unwrap(), SeccompProfile::RuntimeDefault);
        assert_eq!(new(ProfileType::Unconfined, "").unwrap(), SeccompProfile::Unconfined);
        assert_eq!(new(ProfileType::Localhost, "/p.json").unwrap(), SeccompProfile::Localhost("/p.json".into()));
        assert!(new(ProfileType::Localhost, "../p.json").is_err());
        for (old, expected) in [
            ("", Some(SeccompProfile::Unconfined)),
            ("unconfined", Some(SeccompProfile::Unconfined)),
            ("runtime/default", Some(SeccompProfile::RuntimeDefault)),
            ("localhost//p.json", Some(SeccompProfile::Localhost("/p.json".into()))),
            ("other", None),
        ] {
            assert_eq!(seccomp(None, old).ok(), expected, "{old}");
        }
    }

    #[test]
    fn an_apparmor_profile_is_what_the_field_says_and_else_what_older_clients_say() {
        use v1::security_profile::ProfileType;
        let new = |kind: ProfileType, name: &str| {
            let profile = v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() };
            apparmor(Some(profile), "unconfined").ok()
        };
        let mine = || Some(AppArmorProfile::Localhost("mine".to_owned()));
        assert_eq!(new(ProfileType::RuntimeDefault, ""), Some(AppArmorProfile::RuntimeDefault));
        assert_eq!(new(ProfileType::Unconfined, ""), Some(AppArmorProfile::Unconfined));
        assert_eq!(
            (new(ProfileType::Localhost, "mine"), new(ProfileType::Localhost, "localhost/mine")),
            (mine(), mine())
        );
        assert_eq!(new(ProfileType::Localhost, ""), None);
        for (old, expected) in [
            ("", Some(AppArmorProfile::RuntimeDefault)),
            ("runtime/default", Some(AppArmorProfile::RuntimeDefault)),
            ("unconfined", Some(AppArmorProfile::Unconfined)),
            ("localhost/mine", mine()),
            ("localhost/", None),
            ("mine", None),
        ] {
            assert_eq!(apparmor(None, old).ok(), expected, "{old}");
        }
    }
}
