//! Certificates of the cluster, by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An authority that signs for loopback.
#[derive(Debug)]
pub(super) struct Authority {
    directory: PathBuf,
}

/// Where a certificate and its key lie, in PEM.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    /// Makes one in an existing directory.
    ///
    /// # Panics
    /// When openssl is not installed or fails.
    pub(super) fn new(directory: &Path) -> Self {
        let authority = Self { directory: directory.to_owned() };
        let request = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ];
        let who = ["-days", "2", "-subj", "/CN=cluster", "-addext", "basicConstraints=critical,CA:TRUE"];
        authority.openssl(&[&request[..], &who].concat());
        authority
    }

    /// Its own certificate.
    pub(super) fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Signs for a server on loopback.
    pub(super) fn server(&self, name: &str) -> Certificate {
        self.issue(name, "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
    }

    /// Signs for a client of this common name.
    pub(super) fn client(&self, name: &str) -> Certificate {
        self.issue(name, "extendedKeyUsage=clientAuth\n")
    }

    fn issue(&self, name: &str, extensions: &str) -> Certificate {
        let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        std::fs::write(self.directory.join("extensions"), extensions).expect("the directory takes files");
        let subject = format!("/CN={name}");
        let new = [
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &request,
            "-subj",
            &subject,
        ];
        self.openssl(&new);
        let sign = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        self.openssl(&[&sign[..], &["-days", "2", "-extfile", "extensions", "-out", &certificate]].concat());
        Certificate { certificate: self.directory.join(certificate), key: self.directory.join(key) }
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(&self.directory).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
