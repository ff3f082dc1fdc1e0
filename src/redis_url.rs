//! The URL of a Redis: `redis://[user:password@]host[:port][/number]` or `unix:///path[?db=…&user=…&pass=…]`.
//!
//! The crate `redis` reads the same, but with a parser for all URLs of the web, which is 55 kB of program. A test
//! compares both. Only a `#` is malformed here, as it would cut off what follows.

use std::borrow::Cow;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

const PORT: u16 = 6379;

/// Reads a URL; `None` if it is malformed, or asks for TLS.
#[must_use]
pub fn parse(url: &str) -> Option<ConnectionInfo> {
    // As all readers of URLs do.
    let url = url.trim_matches(|c: char| c <= ' ').replace(['\t', '\n', '\r'], "");
    let (scheme, rest) = url.split_once(':').filter(|_| !url.contains('#'))?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (address, settings) = match scheme.to_ascii_lowercase().as_str() {
        "redis" | "valkey" => server(place)?,
        "unix" | "redis+unix" | "valkey+unix" => file(place, query)?,
        _ => return None,
    };
    if !["2", "resp2", "3", "resp3"].contains(&&*parameter(query, "protocol").unwrap_or("2".into())) {
        return None;
    }
    Some(address.into_connection_info().ok()?.set_redis_settings(settings))
}

fn server(place: &str) -> Option<(ConnectionAddr, RedisConnectionInfo)> {
    let place = place.strip_prefix("//")?;
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host.parse::<Ipv6Addr>().ok()?.to_string(), port)
        }
        None => {
            let (host, port) = host.split_at(host.find(':').unwrap_or(host.len()));
            (host.to_owned(), port)
        }
    };
    let is_host = |c: char| !c.is_control() && !" <>@[\\]^|".contains(c);
    if matches!(host.as_str(), "" | "0.0.0.0" | "::") || !host.chars().all(is_host) {
        return None;
    }
    let port = match port.strip_prefix(':') {
        None if !port.is_empty() => return None,
        None | Some("") => PORT,
        Some(port) => port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()))?,
    };
    let number = Some(database.trim_matches('/')).filter(|text| !text.is_empty());
    let given = |text| decoded(text).map(|text| Some(text).filter(|text| !text.is_empty()));
    Some((ConnectionAddr::Tcp(host, port), settings(number, given(user)?, given(password)?)?))
}

fn file(place: &str, query: &str) -> Option<(ConnectionAddr, RedisConnectionInfo)> {
    let path = match place.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
        None => place,
    };
    let path = Some(PathBuf::from(decoded(path)?.into_owned())).filter(|path| path.is_absolute())?;
    let number = parameter(query, "db");
    Some((ConnectionAddr::Unix(path), settings(number.as_deref(), parameter(query, "user"), parameter(query, "pass"))?))
}

fn settings(database: Option<&str>, user: Option<Cow<'_, str>>, password: Option<Cow<'_, str>>) -> Option<RedisConnectionInfo> {
    let mut settings = RedisConnectionInfo::default().set_db(database.map_or(Ok(0), str::parse).ok()?);
    if let Some(user) = user {
        settings = settings.set_username(user);
    }
    if let Some(password) = password {
        settings = settings.set_password(password);
    }
    Some(settings)
}

/// The last value of a parameter, in which `+` is a space.
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let of_name = |pair: &'a str| Some(pair.split_once('=').unwrap_or((pair, ""))).filter(|(key, _)| *key == name);
    let (_, value) = query.split('&').rev().find_map(of_name)?;
    if value.contains('+') { decoded(&value.replace('+', " ")).map(|text| text.into_owned().into()) } else { decoded(value) }
}

/// `text` with `%20` as a space; `None` if that is not UTF-8.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        // A sign without two digits is a sign.
        match part.get(..2).and_then(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()).then_some(digits)) {
            Some(digits) => {
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => bytes.extend_from_slice(format!("%{part}").as_bytes()),
        }
    }
    String::from_utf8(bytes).ok().map(Cow::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(info: &ConnectionInfo) -> String {
        let redis = info.redis_settings();
        format!("{:?} {} {:?} {:?}", info.addr(), redis.db(), redis.username(), redis.password())
    }

    #[test]
    fn the_parts_of_a_url() {
        let table = [
            ("redis://localhost", r#"Tcp("localhost", 6379) 0 None None"#),
            ("redis://user:a%2Fb%23c@[::1]:6380/2", r#"Tcp("::1", 6380) 2 Some("user") Some("a/b#c")"#),
            ("redis://:p:w@x@10.0.0.1/", r#"Tcp("10.0.0.1", 6379) 0 None Some("p:w@x")"#),
            ("unix:///run/redis.sock?db=1&user=u&pass=p+%2B", r#"Unix("/run/redis.sock") 1 Some("u") Some("p +")"#),
        ];
        for (url, expected) in table {
            assert_eq!(parse(url).map(|info| described(&info)).as_deref(), Some(expected), "{url}");
        }
    }

    #[test]
    fn the_crate_redis_reads_the_same() {
        #[rustfmt::skip]
        let urls = [
            "", "redis", "redis:", "redis:/", "redis://", "redis:///0", "redis:host", "redis:/host", "redis://host", "REDIS://host",
            "Redis://Host.Example:1/", "valkey://host/3", "rediss://host", "valkeys://host", "http://host", "redis://host:",
            "redis://host:0", "redis://host:65535", "redis://host:65536", "redis://host:+1", "redis://host:-1", "redis://host:1x",
            "redis://host:06379", "redis://:6379", "redis://user@", "redis://user@:1", "redis://user@host", "redis://user:@host",
            "redis://:@host", "redis://@host", "redis://:p@host", "redis://u:p@q@host", "redis://u:p:q@host/0",
            "redis://u%40:p%25@host", "redis://u:%@host", "redis://u:%4@host", "redis://u:%zz%+1@host", "redis://u:%C3%B0@host",
            "redis://u:%C3@host", "redis://%F0@host", "redis://ü:ß@host", "redis://u:p w@host", "redis://u:p|^[]@host",
            "redis://u:%€@host", "redis://host/1", "redis://host//1//", "redis://host/-1", "redis://host/+1", "redis://host/x",
            "redis://host/1/2", "redis://host/99999999999999999999", "redis://host?protocol=2", "redis://host/?protocol=resp3",
            "redis://host/1?protocol=4", "redis://host/1?protocol", "redis://host/1?protocol=", "redis://host/1?protocol=2&protocol=4",
            "redis://host/1?protocol=4&protocol=2", "redis://host/1?x=y&db=7", "redis://host/1?protocol=%32", "redis://[::1]",
            "redis://[::1]:", "redis://[::1]:7", "redis://[::1]7", "redis://[::1", "redis://::1", "redis://[::]",
            "redis://[FE80::0001]", "redis://[::ffff:1.2.3.4]", "redis://[fe80::1%25eth0]", "redis://0.0.0.0", "redis://127.0.0.1",
            "redis://127.1", "redis://a_b-c.d", "redis://a b", "redis://a<b", "redis://a|b", "redis://a^b", "redis://a]b",
            "redis://a\\b", "redis://a%20b", "redis://host ", "  redis://host/1\n", "re\tdis://ho\nst", "redis://u:p\t@host", "unix:",
            "unix:run", "unix:/run/redis.sock", "unix://", "unix:///", "unix:///run/redis.sock", "UNIX:///run/a",
            "unix://localhost/run/a", "unix://run/redis.sock", "redis+unix:///run/a?db=1", "valkey+unix:///a%20b/c%2525",
            "unix:///a?db=", "unix:///a?db=x", "unix:///a?db=-1", "unix:///a?user=", "unix:///a?pass=",
            "unix:///a?user=u&pass=p%26+%2B&db=3", "unix:///a?pass=a=b", "unix:///a?pass=1&pass=2", "unix:///a?&&pass=1&",
            "unix:///a?pass", "unix:///a?protocol=3", "unix:///a?protocol=9", "unix:///ä/b c", "unix:///a;b/c|d^e",
        ];
        let ours = |url: &str| parse(url).map(|info| described(&info));
        let theirs = |url: &str| url.into_connection_info().ok().map(|info| described(&info));
        let others: Vec<_> = urls.iter().filter(|url| ours(url) != theirs(url)).map(|url| (url, ours(url), theirs(url))).collect();
        assert!(others.is_empty(), "{others:#?}");
    }
}
