//! The formats that a page is served in, and which of them a client gets.

mod collected;
mod gzip;
mod page;
mod protobuf;
mod text;

pub(super) use self::{
    collected::Collected,
    gzip::{GZIP, Gzip, is_accepted as accepts_gzip},
    page::Page,
    protobuf::Protobuf,
    text::Text,
};

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' text format, 0.0.4: what everybody gets who does not ask for another.
    Text,
    /// OpenMetrics 1.0, as text: it has exemplars.
    OpenMetrics,
    /// Prometheus' protocol buffers, delimited by their lengths: they have native histograms.
    Protobuf,
}

impl Format {
    /// The format that the header `Accept` wants most among those that there are.
    pub(super) fn accepted(accept: &str) -> Self {
        let mut best = (Self::Text, 0.0);
        for range in accept.split(',') {
            let mut parameters = range.split(';').map(str::trim);
            let kind = parameters.next().unwrap_or_default();
            let (mut quality, mut is_other) = (1.0, false);
            for parameter in parameters {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                match name.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => is_other |= !["1.0.0", "0.0.4"].contains(&value.trim()),
                    "proto" => is_other |= value.trim() != "io.prometheus.client.MetricFamily",
                    "encoding" => is_other |= value.trim() != "delimited",
                    _ => {}
                }
            }
            let format = match kind {
                "application/openmetrics-text" => Self::OpenMetrics,
                "application/vnd.google.protobuf" => Self::Protobuf,
                "text/plain" | "text/*" | "*/*" => Self::Text,
                _ => continue,
            };
            if !is_other && quality > best.1 {
                best = (format, quality);
            }
        }
        best.0
    }

    /// The header `Content-Type`.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus::TEXT_FORMAT,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                 encoding=delimited"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_prefers_of_what_there_is() {
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        let open = "application/openmetrics-text;version=1.0.0";
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/html", Format::Text),
            (open, Format::OpenMetrics),
            (&format!("{open},text/plain;version=0.0.4;q=0.5,*/*;q=0.1"), Format::OpenMetrics),
            (&format!("{protobuf},{open};q=0.8,text/plain;q=0.5"), Format::Protobuf),
            (&format!("{protobuf};q=0.3, {open}; q=0.8"), Format::OpenMetrics),
            ("application/openmetrics-text;version=0.0.1,text/plain;q=0.5", Format::Text),
            (
                "application/vnd.google.protobuf;proto=other.Message;encoding=delimited",
                Format::Text,
            ),
            ("application/openmetrics-text;q=none", Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}
