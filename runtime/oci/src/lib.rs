//! OCI runtime: namespaces, cgroups, root file system, seccomp, capabilities.
