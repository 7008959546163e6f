//! Which `WEFT_…` variables there are. One that is mistyped would be silence where somebody expects an effect.

use std::collections::BTreeMap;

use super::Invalid;
use super::keys::{KEYS, Key};
use super::suggest::nearest;

/// How much is logged: the one variable that is no key.
pub const LOG: &str = "WEFT_LOG";
const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
const PREFIX: &str = "WEFT_";

/// Problems with variables that begin with `WEFT_` and that nobody reads, or that say nothing.
pub fn refuse_variables(variables: &BTreeMap<String, String>) -> Vec<Invalid> {
    let ours = variables.iter().filter(|(name, _)| name.starts_with(PREFIX));
    ours.filter_map(|(name, value)| Some(Invalid::new(name.clone(), problem(name, value)?))).collect()
}

fn problem(name: &str, value: &str) -> Option<String> {
    if name == LOG {
        let known = LOG_LEVELS.contains(&value);
        return (!known).then(|| format!("{value:?} is none of {}", LOG_LEVELS.join(", ")));
    }
    let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
    if known.iter().any(|known| known == name) || is_of_a_service(name, value) {
        return None;
    }
    let meant = nearest(name, known.iter().map(String::as_str).chain([LOG]));
    Some(match meant {
        Some(meant) => format!("there is no such variable; is {meant} meant?"),
        None => "there is no such variable; `weftd run --help` lists them. Remove it".to_owned(),
    })
}

/// Kubernetes gives every container variables about each Service of its namespace: for one called `weft` or `weft-…`
/// `WEFT_SERVICE_HOST`, `WEFT_SERVICE_PORT[_NAME]`, `WEFT_PORT` and `WEFT_PORT_443_TCP[_PROTO|_PORT|_ADDR]`.
fn is_of_a_service(name: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") {
        return true;
    }
    let Some((_, port)) = name.rsplit_once("_PORT_").filter(|(_, port)| !port.is_empty()) else {
        return name.ends_with("_PORT") && is_url;
    };
    let mut words = port.split('_');
    let number = words.next().is_some_and(|word| word.parse::<u16>().is_ok());
    number && words.next().is_some_and(|word| ["TCP", "UDP", "SCTP"].contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(variables: &[(&str, &str)]) -> Vec<String> {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        refuse_variables(&variables).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_mistyped_variable_is_refused_with_the_one_that_is_meant() {
        for (name, meant) in [
            ("WEFT_STORE_ENDPOINT", "WEFT_STORE_ENDPOINTS"),
            ("WEFT_NETWORK_MUT", "WEFT_NETWORK_MTU"),
            ("WEFT_VXLAM_PORT", "WEFT_VXLAN_PORT"),
            ("WEFT_LOGS", "WEFT_LOG"),
        ] {
            let expected = format!("{name}: there is no such variable; is {meant} meant?");
            assert_eq!(refused(&[(name, "4789")]), [expected]);
        }
        assert!(refused(&[("WEFT_BACKGROUND_COLOUR", "red")])[0].contains("Remove it"));
        assert_eq!(
            refused(&[("WEFT_LOG", "verbose")]),
            ["WEFT_LOG: \"verbose\" is none of error, warn, info, debug, trace"]
        );
    }

    #[test]
    fn every_key_the_log_and_what_kubernetes_says_of_services_are_known() {
        for key in KEYS {
            assert_eq!(refused(&[(&key.variable(), "x")]), Vec::<String>::new());
        }
        let services = [
            ("WEFT_LOG", "debug"),
            ("WEFT_SERVICE_HOST", "10.0.0.1"),
            ("WEFT_SERVICE_PORT", "443"),
            ("WEFT_SERVICE_PORT_HTTPS", "443"),
            ("WEFT_METRICS_SERVICE_HOST", "10.0.0.1"),
            ("WEFT_PORT", "tcp://10.0.0.1:443"),
            ("WEFT_PORT_443_TCP", "tcp://10.0.0.1:443"),
            ("WEFT_PORT_443_TCP_PROTO", "tcp"),
            ("WEFT_METRICS_PORT_9469_TCP_ADDR", "10.0.0.1"),
            ("OTHER_STORE_ENDPOINT", "x"),
        ];
        assert_eq!(refused(&services), Vec::<String>::new());
        assert_eq!(refused(&[("WEFT_PORT", "443"), ("WEFT_PORT_X_TCP", "443")]).len(), 2);
    }
}
