use super::*;

fn context(endpoint: &str) -> Context<'_> {
    Context { endpoint, step: Step::Call("read"), user: Some("weft"), prefix: "/weft/v1/" }
}

fn failure(endpoint: &str, kind: Kind) -> Failure {
    context(endpoint).fail(kind, "no")
}

#[test]
fn an_answer_of_etcd_says_whether_anything_was_applied() {
    let cases = [
        ("etcdserver: permission denied", Kind::Refused),
        ("etcdserver: mvcc: database space exceeded", Kind::NoSpace),
        ("etcdserver: no leader", Kind::NotApplied),
        ("etcdserver: request timed out", Kind::Unknown),
        ("etcdserver: request timed out, possibly due to previous leader failure", Kind::Unknown),
        ("etcdserver: leader changed", Kind::Unknown),
        ("etcdserver: server stopped", Kind::Unknown),
        ("etcdserver: mvcc: required revision has been compacted", Kind::Compacted),
        ("etcdserver: requested lease not found", Kind::NoLease),
    ];
    for (message, kind) in cases {
        assert_eq!(context("http://a:1").answered(message).kind, kind, "{message}");
    }
}

#[test]
fn a_connection_that_never_stood_applied_nothing_and_one_that_broke_may_have() {
    let context = context("http://a:1");
    let refused =
        context.broken("tcp connect error: Connection refused (os error 111)", "Error(ConnectError(..))");
    assert_eq!((refused.kind, refused.step), (Kind::NotApplied, Step::Connect));
    let broken = context.broken("http2 error: broken pipe", "Error(hyper)");
    assert_eq!(broken.kind, Kind::Unknown);
}

#[test]
fn a_bad_certificate_is_named_with_what_to_do() {
    let cases = [
        (
            "invalid peer certificate: UnknownIssuer",
            "store https://a:1: set up TLS: its certificate is from a CA that the configured CA file does not hold. \
             Configure the CA of this etcd",
        ),
        (
            "invalid peer certificate: certificate expired: verification time 2 (UNIX), but certificate is not valid after 1",
            "store https://a:1: set up TLS: its certificate has expired. Renew it; if it has not, this node's clock is wrong",
        ),
        (
            "received corrupt message of type InvalidContentType",
            "store https://a:1: set up TLS: it seems not to speak TLS. Use http:// for it, or switch TLS on there",
        ),
    ];
    for (chain, expected) in cases {
        let failure = context("https://a:1").broken(chain, "ConnectError(..)");
        assert_eq!(failure.to_string(), expected);
        assert_eq!(failure.kind, Kind::EndpointRefused);
    }
}

#[test]
fn a_transaction_that_may_have_been_applied_is_an_unknown_outcome_and_a_read_is_not() {
    let failures = [failure("http://a:1", Kind::Unknown)];
    assert!(matches!(combine(&failures, false), StoreError::UnknownOutcome { .. }));
    assert!(matches!(combine(&failures, true), StoreError::Unavailable { .. }));
}

#[test]
fn endpoints_that_all_refuse_are_a_refusal_and_one_that_is_down_leaves_hope() {
    let refused = failure("https://a:1", Kind::EndpointRefused);
    let down = failure("https://b:1", Kind::NotApplied);
    assert!(matches!(combine(&[refused.clone(), refused.clone()], true), StoreError::Refused { .. }));
    let both = combine(&[down, refused], true);
    let expected = "none of 2 endpoints answered: store https://b:1: read: no; store https://a:1: read: no";
    assert_eq!(both, StoreError::Unavailable { reason: expected.to_owned() });
}

#[test]
fn the_follower_finds_a_refusal_if_the_cluster_or_most_endpoints_refuse() {
    let [refused, down] = [Kind::EndpointRefused, Kind::NotApplied].map(|kind| failure("https://a:1", kind));
    let by_login = failure("https://a:1", Kind::Refused);
    let broke_off = failure("https://a:1", Kind::BrokeOff);
    let is_refusal = |said: &[&Failure], endpoints: usize| {
        let said: Vec<Failure> = said.iter().map(|failure| (*failure).clone()).collect();
        matches!(verdict(&said, endpoints), StoreError::Refused { .. })
    };
    for (said, endpoints, expected) in [
        (&[&refused][..], 1, true),
        (&[&down], 1, false),
        (&[&broke_off], 1, false),
        (&[&refused, &down], 2, false),
        (&[&refused, &refused, &down], 3, true),
        (&[&refused, &down, &down], 3, false),
        // The others were not asked yet.
        (&[&refused], 3, false),
        // That is the cluster's word, by whichever member.
        (&[&down, &by_login], 3, true),
    ] {
        assert_eq!(is_refusal(said, endpoints), expected, "{said:?} of {endpoints}");
    }
}
