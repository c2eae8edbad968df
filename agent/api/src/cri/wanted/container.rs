//! A container: what it runs, what it is given, and whose processes it sees.

use portreeve_engine::{ContainerConfig, ContainerId, ContainerMetadata, Device, cdi};
use tonic::Status;

use super::mount::mount;
use super::security::security;
use super::{below, bounded, invalid, name, resources, v1};

/// A container, of the image with this id.
pub(crate) fn container(config: v1::ContainerConfig, image_id: String) -> Result<ContainerConfig, Status> {
    let metadata = config.metadata.clone().ok_or_else(|| invalid("config.metadata", "is missing"))?;
    name("config.metadata.name", &metadata.name)?;
    bounded(&config.labels, &config.annotations)?;
    let named = config.cdi_devices.iter().map(|device| device.name.as_str());
    let cdi_devices = cdi::requested(named, &config.annotations).map_err(|error| invalid("config", error))?;
    let signal = config.stop_signal();
    let asked = config.image.map(|image| match image.user_specified_image.as_str() {
        "" => image.image,
        name => name.to_owned(),
    });
    let linux = config.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let limits = linux.resources.unwrap_or_default();
    let oom_score_adj = oom_score_adj(limits.oom_score_adj)?;
    Ok(ContainerConfig {
        metadata: ContainerMetadata { name: metadata.name, attempt: metadata.attempt },
        image: asked.unwrap_or_default(),
        image_id: Some(image_id),
        command: config.command,
        args: config.args,
        working_dir: Some(config.working_dir).filter(|path| !path.is_empty()),
        envs: config.envs.into_iter().map(env).collect::<Result<_, _>>()?,
        mounts: config.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
        devices: config.devices.into_iter().map(device).collect(),
        cdi_devices,
        labels: config.labels,
        annotations: config.annotations,
        log_path: below("config.log_path", config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources(limits)?,
        processes_of: processes_of(context.namespace_options.as_ref())?,
        own_processes: context.namespace_options.as_ref().is_some_and(|options| {
            // A field that was left out is POD: as the sandbox has it.
            options.pid() == v1::NamespaceMode::Container
        }),
        security: security(context)?,
        oom_score_adj: Some(oom_score_adj),
        stop_signal: match signal {
            v1::Signal::RuntimeDefault => None,
            given => Some(given.as_str_name().replace("PLUS", "+").replace("MINUS", "-")),
        },
    })
}

/// How soon a container is killed when memory runs out, within the kernel's bounds.
pub(crate) fn oom_score_adj(asked: i64) -> Result<i32, Status> {
    let score = i32::try_from(asked).ok().filter(|score| (-1000..=1000).contains(score));
    score.ok_or_else(|| invalid("resources.oom_score_adj", format!("{asked} is not from -1000 to 1000")))
}

/// A kubelet passes on whatever a Secret holds; programs here get text.
fn env(env: v1::KeyValue) -> Result<(String, String), Status> {
    match String::from_utf8(env.value) {
        Ok(value) => Ok((env.key, value)),
        Err(_) => Err(invalid("config.envs", format!("the value of {:?} is not UTF-8; mount it as a file", env.key))),
    }
}

/// The container whose processes another is to see.
fn processes_of(options: Option<&v1::NamespaceOption>) -> Result<Option<ContainerId>, Status> {
    match options {
        Some(options) if options.pid() == v1::NamespaceMode::Target => {
            let id = options.target_id.parse();
            id.map(Some).map_err(|error| invalid("security_context.namespace_options.target_id", error))
        }
        _ => Ok(None),
    }
}

fn device(device: v1::Device) -> Device {
    Device {
        host_path: device.host_path.into(),
        container_path: device.container_path.into(),
        permissions: device.permissions,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::tests::container_config;
    use super::*;

    #[test]
    fn devices_are_those_of_the_field_and_of_annotations_each_once() {
        let of = |named: &[&str], annotations: &[(&str, &str)]| {
            let cdi_devices = named.iter().map(|name| v1::CdiDevice { name: (*name).to_owned() }).collect();
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let wanted = v1::ContainerConfig { cdi_devices, annotations, ..container_config() };
            let made = container(wanted, "id".into())?;
            Ok::<_, Status>(made.cdi_devices.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let both = of(
            &["vendor.com/gpu=1", "vendor.com/gpu=0", "vendor.com/gpu=1"],
            &[("cdi.k8s.io/b", "vendor.com/net=x"), ("cdi.k8s.io/a", "vendor.com/gpu=0,other.org/n.i-c=a:b_c")],
        );
        assert_eq!(
            both.unwrap(),
            ["vendor.com/gpu=1", "vendor.com/gpu=0", "other.org/n.i-c=a:b_c", "vendor.com/net=x"]
        );
        let refused = of(&[], &[("cdi.k8s.io/a", "vendor.com/gpu=0, vendor.com/gpu=1")]).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("annotations[cdi.k8s.io/a]"), "{refused}");
        assert_eq!(of(&[], &[("io.kubernetes/x", "gpu")]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_supported_is_refused_and_never_left_out() {
        let refused = |config: v1::ContainerConfig| container(config, "id".into()).unwrap_err().code();
        let devices = vec![v1::CdiDevice { name: "gpu0".into() }];
        assert_eq!(refused(v1::ContainerConfig { cdi_devices: devices, ..container_config() }), Code::InvalidArgument);
        let mount = |mount_options: &[&str]| {
            let mount_options = mount_options.iter().map(|option| (*option).to_owned()).collect();
            let mount =
                v1::Mount { container_path: "/c".into(), host_path: "/".into(), mount_options, ..Default::default() };
            container(v1::ContainerConfig { mounts: vec![mount], ..container_config() }, "id".into())
        };
        assert_eq!(mount(&["noexec", "nodev"]).unwrap().mounts[0].options, ["noexec", "nodev"]);
        assert_eq!(mount(&["upperdir=/etc"]).unwrap_err().code(), Code::InvalidArgument);
        let env = v1::KeyValue { key: "A".into(), value: vec![0xff] };
        let config = v1::ContainerConfig { envs: vec![env], ..container_config() };
        assert_eq!(refused(config), Code::InvalidArgument);
    }

    #[test]
    fn a_container_whose_processes_are_to_be_seen_has_an_id() {
        let asked = |target_id: &str| {
            let pid = v1::NamespaceMode::Target.into();
            processes_of(Some(&v1::NamespaceOption { pid, target_id: target_id.to_owned(), ..Default::default() }))
        };
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(asked(&id).unwrap().map(|id| id.to_string()), Some(id));
        for bad in ["", "../1"] {
            assert_eq!(asked(bad).unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
        }
        assert_eq!(processes_of(Some(&v1::NamespaceOption::default())).unwrap(), None);
    }

    #[test]
    fn a_stop_signal_has_the_name_that_the_engine_knows() {
        let named = |signal: v1::Signal| {
            let config = v1::ContainerConfig { stop_signal: signal.into(), ..container_config() };
            container(config, "id".into()).unwrap().stop_signal
        };
        assert_eq!(named(v1::Signal::RuntimeDefault), None);
        assert_eq!(named(v1::Signal::Sigquit).as_deref(), Some("SIGQUIT"));
        assert_eq!(named(v1::Signal::Sigrtminplus3).as_deref(), Some("SIGRTMIN+3"));
        assert_eq!(named(v1::Signal::Sigrtmaxminus1).as_deref(), Some("SIGRTMAX-1"));
    }

    #[test]
    fn a_score_for_the_lack_of_memory_is_one_that_the_kernel_takes() {
        assert_eq!((oom_score_adj(-1000).unwrap(), oom_score_adj(1000).unwrap()), (-1000, 1000));
        for bad in [-1001, 1001, i64::MIN, i64::MAX] {
            assert_eq!(oom_score_adj(bad).unwrap_err().code(), Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn the_engine_knows_every_signal() {
        for signal in (0..).map_while(|number| v1::Signal::try_from(number).ok()) {
            let config = v1::ContainerConfig { stop_signal: signal.into(), ..container_config() };
            let name = container(config, "id".into()).unwrap().stop_signal.unwrap_or_default();
            assert!(portreeve_engine::stop_signal(&name).is_ok(), "{name}");
        }
    }
}
