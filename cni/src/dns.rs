//! Name service settings, passed from configuration to result; Weft itself never uses them.

use serde_json::{Map, Value};

use crate::error::Error;
use crate::object::Object;

/// The `dns` object of configurations and results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers, in order of priority.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Search domains, in order of priority.
    pub search: Vec<String>,
    /// Options for the resolver.
    pub options: Vec<String>,
}

impl Dns {
    /// Reads a `dns` object.
    ///
    /// # Errors
    /// Code 6 when a field has the wrong type.
    pub fn parse(object: &Object) -> Result<Self, Error> {
        Ok(Self {
            nameservers: object.strings("nameservers")?.unwrap_or_default(),
            domain: object.string("domain")?.unwrap_or_default(),
            search: object.strings("search")?.unwrap_or_default(),
            options: object.strings("options")?.unwrap_or_default(),
        })
    }

    /// Whether the object sets anything. An empty list does (it overrides the IPAM plugin's list), an empty
    /// domain does not: so the reference plugins, which cannot tell it from an absent one.
    pub fn is_set(object: &Object) -> Result<bool, Error> {
        let lists = ["nameservers", "search", "options"];
        Ok(lists.iter().any(|key| object.contains(key)) || object.text("domain")?.is_some())
    }

    /// Reads the text of a `resolv.conf`: unknown and incomplete lines are skipped, as `host-local` does.
    pub fn from_resolv_conf(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
            let mut words = line.split_whitespace().map(str::to_owned);
            let keyword = words.next().unwrap_or_default();
            match keyword.as_str() {
                "nameserver" => dns.nameservers.extend(words.next()),
                "domain" => dns.domain = words.next().unwrap_or(dns.domain),
                "search" => dns.search.extend(words),
                "options" => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The JSON object, without its empty fields.
    pub fn to_value(&self) -> Value {
        let mut object = Map::new();
        let mut list = |key: &str, values: &[String]| {
            if !values.is_empty() {
                object.insert(key.into(), values.into());
            }
        };
        list("nameservers", &self.nameservers);
        list("search", &self.search);
        list("options", &self.options);
        if !self.domain.is_empty() {
            object.insert("domain".into(), self.domain.as_str().into());
        }
        Value::Object(object)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: &Value) -> Object {
        Object::from_value("dns", value).unwrap()
    }

    #[test]
    fn what_was_read_is_printed_again_without_empty_fields() {
        let full = json!({"nameservers": ["1.1.1.1"], "domain": "x", "search": ["a", "b"], "options": ["c"]});
        assert_eq!(Dns::parse(&object(&full)).unwrap().to_value(), full);
        assert_eq!(Dns::default().to_value(), json!({}));
    }

    #[test]
    fn an_empty_list_sets_dns_and_null_or_an_empty_domain_does_not() {
        for (value, expected) in [
            (json!({}), false),
            (json!({"nameservers": null}), false),
            (json!({"domain": ""}), false),
            (json!({"unknown": 1}), false),
            (json!({"nameservers": []}), true),
            (json!({"Options": []}), true),
            (json!({"domain": "x"}), true),
        ] {
            assert_eq!(Dns::is_set(&object(&value)), Ok(expected), "{value}");
        }
    }

    #[test]
    fn a_resolv_conf_is_read_line_by_line() {
        let dns = Dns::from_resolv_conf(
            "# comment\n; other\nnameserver 192.0.2.0\n  nameserver\t192.0.2.1 extra\nnameserver\n\
             domain example.com\nsearch a.com b.com\noptions ndots:2\noptions timeout:1 rotate\nsortlist x\n\n",
        );
        assert_eq!(dns.nameservers, ["192.0.2.0", "192.0.2.1"]);
        assert_eq!(dns.domain, "example.com");
        assert_eq!(dns.search, ["a.com", "b.com"]);
        assert_eq!(dns.options, ["ndots:2", "timeout:1", "rotate"]);
    }
}
