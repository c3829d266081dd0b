//! A token that the gateway gets for itself, to show it to a third party (RFC 6749 section 4.4): what it asks for, and how
//! the answer is read. `background/` owns when.
//!
//! Invariants: a token is shown until it expires and no longer, counted from when it was asked for; neither it nor the client's secret is in `Debug`, in an
//! error or in a name.

use std::any::Any;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use http::HeaderValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::fetched::{FetchPlan, Place, Posted, Reader, Step};
use super::oauth_client::{OauthClient, form};
use crate::values::Redacted;

const MAX_TOKEN: usize = 16 << 10;
/// Longer than anybody wants to wait for a token that was taken back to be replaced.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const SHORTEST: Duration = Duration::from_secs(1);
/// What an authorization server may say is wrong (RFC 6749 section 5.2, RFC 8707 section 2); its other words stay with it.
const WRONGS: [&str; 7] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
];

/// By Authorization, or by parameters of the form.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuthentication {
    #[default]
    Basic,
    Post,
}

/// A token, as `Authorization` carries it.
#[derive(Debug)]
pub struct ClientToken {
    field: HeaderValue,
    /// None: the server does not say.
    lives: Option<Lives>,
}

#[derive(Clone, Copy, Debug)]
struct Lives {
    until: Instant,
    whole: Duration,
}

/// What tells apart who asks for a token, where and for what; the same when only the client's secret is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenHolder([u8; 32]);

impl ClientToken {
    /// What is to be fetched to have one, and for whom. `giver`: what tells the backend at that place from others.
    pub fn plan(
        place: Place,
        giver: Option<[u8; 32]>,
        client: &OauthClient,
        authentication: ClientAuthentication,
        scopes: &[String],
        audience: Option<&str>,
    ) -> (FetchPlan, TokenHolder) {
        let mut text = "grant_type=client_credentials".to_owned();
        if !scopes.is_empty() {
            let _ = write!(text, "&scope={}", form(scopes.join(" ").as_bytes()));
        }
        if let Some(audience) = audience {
            let _ = write!(text, "&audience={}", form(audience.as_bytes()));
        }
        let holder = TokenHolder(digest_of(&[
            place.to_string().as_bytes(),
            giver.as_ref().map_or(&[], <[u8; 32]>::as_slice),
            &[authentication as u8],
            client.id().as_bytes(),
            text.as_bytes(),
        ]));
        let authorization = match authentication {
            ClientAuthentication::Basic => Some(client.basic()),
            ClientAuthentication::Post => {
                let _ = write!(text, "&{}", client.parameters().expose());
                None
            }
        };
        let print = Redacted::new(digest_of(&[&holder.0, &client.digest()]));
        let posted = Some(Posted { form: Redacted::new(text), authorization });
        (FetchPlan { place, reader: Arc::new(OfToken { print }), posted, giver }, holder)
    }

    /// The field's value, as long as it is good.
    pub fn shown(&self) -> Option<&HeaderValue> {
        self.is_good().then_some(&self.field)
    }

    fn is_good(&self) -> bool {
        self.lives.is_none_or(|lives| Instant::now() < lives.until)
    }
}

/// Of all parts, with their lengths.
fn digest_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut print = digest::Context::new(&digest::SHA256);
    for part in parts {
        print.update(&(part.len() as u64).to_be_bytes());
        print.update(part);
    }
    print.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[derive(Debug)]
struct OfToken {
    /// Of what is asked, and by whom.
    print: Redacted<[u8; 32]>,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    token_type: String,
    /// A number; some write it as text.
    expires_in: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Reader for OfToken {
    fn name(&self) -> String {
        let hex = self.print.expose().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        format!("token {hex}")
    }

    fn read(&self, _: usize, body: &[u8], asked: Instant) -> Result<Step, String> {
        // What serde says of it could hold a piece of it.
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|_| "what it answered is no JSON object with access_token and token_type")?;
        if !answer.token_type.eq_ignore_ascii_case("Bearer") {
            return Err("the token that it gave is not of the type Bearer".into());
        }
        let token = &answer.access_token;
        if !(1..=MAX_TOKEN).contains(&token.len()) || !token.bytes().all(|sign| sign.is_ascii_graphic()) {
            return Err("the token that it gave is not one of 1 to 16384 visible ASCII characters".into());
        }
        let seconds = match &answer.expires_in {
            None | Some(Value::Null) => None,
            Some(Value::Number(number)) => Some(number.as_f64().unwrap_or_default()),
            Some(Value::String(text)) => Some(text.parse::<f64>().unwrap_or_default()),
            Some(_) => Some(0.0),
        };
        let lives = match seconds {
            None => None,
            // Not for one that is no number, either.
            Some(seconds) if seconds >= 1.0 => {
                // No clock of ours goes further.
                let whole = Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64() * 365.0));
                Some(Lives { until: asked + whole, whole })
            }
            Some(_) => return Err("the token that it gave has expired already (expires_in)".into()),
        };
        let mut field = HeaderValue::try_from(format!("Bearer {token}")).expect("visible ASCII is a value");
        field.set_sensitive(true);
        Ok(Step::Done(Arc::new(ClientToken { field, lives })))
    }

    /// While a fourth of its life is left.
    fn fresh_for(&self, value: &(dyn Any + Send + Sync)) -> Option<Duration> {
        let lives = value.downcast_ref::<ClientToken>()?.lives?;
        Some((lives.whole * 3 / 4).clamp(SHORTEST, LONGEST))
    }

    fn ends(&self, value: &(dyn Any + Send + Sync)) -> Option<Instant> {
        Some(value.downcast_ref::<ClientToken>()?.lives?.until)
    }

    fn why(&self, body: &[u8]) -> Option<&'static str> {
        let refusal: Refusal = serde_json::from_slice(body).ok()?;
        WRONGS.into_iter().find(|wrong| *wrong == refusal.error)
    }
}
