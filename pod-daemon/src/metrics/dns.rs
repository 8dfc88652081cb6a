//! Queries of name servers.

use pod_ebpf::dns::{OUTCOMES, Outcome};

use super::{
    family::{Domain, Family, Label, Source::Container, labels},
    net::PROBES,
};

const OUTCOME_LABELS: [&str; OUTCOMES] = labels!(Outcome::ALL, OUTCOMES);

pub(super) const DOMAIN: Domain = Domain {
    title: "DNS",
    text: "What the container asked of name servers, in the packets to and from port 53, over UDP \
           and TCP. A query that is sent again is another query; what TCP sends again is not. How \
           many had no answer, or none yet, is `podscope_dns_queries_total - sum without (outcome) \
           (podscope_dns_responses_total)`. Names are not looked at.",
    families: &[
        Family::counter(
            "podscope_dns_queries_total",
            "Queries that were sent.",
            Container(|c, sheet| sheet.count(&[], c.dns.queries)),
        )
        .counted_by(PROBES),
        Family::counter(
            "podscope_dns_responses_total",
            "Queries that were answered, each once, by what the answer says. `noerror` has a series \
             from the first query on, others appear with their first answer.",
            Container(|c, sheet| {
                for (outcome, count) in Outcome::ALL.into_iter().zip(c.dns.answers) {
                    let always = outcome == Outcome::NoError && c.dns.queries > 0;
                    if always || count > 0 {
                        sheet.count(&[outcome.label()], count);
                    }
                }
            }),
        )
        .by(&[Label::each("outcome", &OUTCOME_LABELS)])
        .counted_by(PROBES),
        Family::histogram(
            "podscope_dns_duration_seconds",
            "Time from a query to its answer. Bounds grow by a factor of 4, and so much is the most \
             that a quantile can be off. Exemplar: the slowest lately over UDP.",
            Container(|c, sheet| {
                sheet.latency_such_as(&[], &c.dns.duration, c.slowest_query);
            }),
        )
        .counted_by(PROBES),
    ],
};
