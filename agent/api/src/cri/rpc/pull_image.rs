//! `PullImage`: asks the registry, with the login that the client gives, and answers with the image's id.

use portreeve_engine::chain;
use portreeve_engine::image::{Credential, ImageRef, PullError};
use tonic::{Code, Status};

use super::Answer;
use crate::cri::Cri;
use crate::cri::v1::{AuthConfig, PullImageRequest, PullImageResponse};

pub(super) async fn answer(cri: &Cri, asked: PullImageRequest) -> Answer<PullImageResponse> {
    let spec = asked.image.unwrap_or_default();
    // An image is the same for every runtime here.
    cri.handlers.find(&spec.runtime_handler)?;
    let name: ImageRef =
        spec.image.parse().map_err(|error| Status::invalid_argument(format!("image.image: {}", chain(&error))))?;
    let logins = asked.auth.map(|auth| login(&auth, name.registry())).transpose()?.flatten();
    let logins: Vec<Credential> = logins.into_iter().collect();
    let image = cri.engine.images().pull(&name, &logins, None).await.map_err(|error| refused(&error))?;
    Ok(PullImageResponse { image_ref: image.id.to_string() })
}

/// The login that a client gives, read as an entry of a docker config is; `None` when it gives an empty one.
fn login(auth: &AuthConfig, registry: &str) -> Result<Option<Credential>, Status> {
    let host = match auth.server_address.as_str() {
        "" => registry,
        given => given,
    };
    // A name beats what is encoded.
    let encoded = if auth.username.is_empty() { auth.auth.as_str() } else { "" };
    let file = serde_json::json!({ "auths": { host: {
        "username": auth.username, "password": auth.password, "auth": encoded,
        "registrytoken": auth.registry_token, "identitytoken": auth.identity_token,
    } } });
    let logins = Credential::from_docker_config(file.to_string().as_bytes());
    let logins = logins.map_err(|error| Status::invalid_argument(format!("auth: {}", chain(&error))))?;
    Ok(logins.into_iter().next())
}

/// In the words by which a kubelet tells the reason of a waiting container.
fn refused(error: &PullError) -> Status {
    let text = format!("{}; {}", chain(error), error.advice());
    match error {
        PullError::Untrusted(_) => Status::unknown(format!("SignatureValidationFailed: {text}")),
        // As above: a kubelet looks for the word at the beginning, which of this code alone is the text's own.
        PullError::CannotConnect { .. } => Status::unknown(format!("RegistryUnavailable: {text}")),
        PullError::NotFound { .. } => Status::not_found(text),
        PullError::Unauthorized { .. } => Status::permission_denied(text),
        PullError::DiskFull { .. } => Status::resource_exhausted(text),
        _ => Status::new(Code::Unknown, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_for_the_server_that_is_named_or_else_for_the_images_own() {
        let basic = |server: &str| {
            let auth = AuthConfig { username: "me".into(), password: "pw".into(), ..AuthConfig::default() };
            login(&AuthConfig { server_address: server.into(), ..auth }, "registry.example").unwrap().unwrap()
        };
        assert_eq!(basic(""), Credential::basic("registry.example", "me", "pw"));
        assert_eq!(basic("https://other.example/v1/"), Credential::basic("https://other.example/v1/", "me", "pw"));
    }

    #[test]
    fn an_encoded_login_is_read_a_damaged_one_refused_and_an_empty_one_none() {
        let encoded = |text: &str| login(&AuthConfig { auth: text.into(), ..AuthConfig::default() }, "r");
        assert_eq!(encoded("bWU6cHc=").unwrap(), Some(Credential::basic("r", "me", "pw")));
        assert_eq!(encoded("%%").unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(encoded("").unwrap(), None);
    }
}
