//! Container logs: stored CRI lines in, the container's own bytes out, followed while it lives.

pub(super) mod decode;
pub(super) mod files;

use std::{collections::VecDeque, io, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};

use self::{decode::Decoder, files::LogFile};
use super::{
    Api, Failure, Operations,
    params::{Names, Params},
};

/// How long new lines may take to be noticed; looking costs a few `stat`s.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn read<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Response, Failure> {
    let target = Target {
        names,
        container: params.text("container").map(str::to_owned),
        previous: params.flag("previous")?,
    };
    let source = target.logs(&api)?;
    if source.files.is_empty() && !source.live {
        target.refuse_if_waiting(&api)?;
    }
    let mut files = target.open(&api)?;
    if let Some(lines) = params.parsed("tailLines")? {
        files = tokio::task::spawn_blocking(move || files::skip_to_tail(files, lines))
            .await
            .map_err(io::Error::from)
            .flatten()
            .map_err(|error| Failure::internal(format!("cannot read the log: {error}")))?;
    }
    let decoder = Decoder::new(params.flag("timestamps")?, since(&params)?);
    let reader = Reader {
        follow: params.flag("follow")?,
        left: params.parsed("limitBytes")?.unwrap_or(u64::MAX),
        api,
        target,
        files,
        decoder,
        ended: false,
    };
    let body = stream::unfold(reader, |mut reader| async move {
        reader.next().await.map(|chunk| (chunk, reader))
    });
    Ok(([(CONTENT_TYPE, "text/plain")], Body::from_stream(body)).into_response())
}

/// The time before which lines do not count.
fn since(params: &Params) -> Result<Option<Timestamp>, Failure> {
    let Some(seconds) = params.parsed("sinceSeconds")? else {
        return params.parsed("sinceTime");
    };
    Timestamp::now()
        .checked_sub(SignedDuration::from_secs(seconds))
        .map(Some)
        .map_err(|error| Failure::bad_request(format!("sinceSeconds: {error}")))
}

/// Whose log it is.
struct Target {
    names: Names,
    container: Option<String>,
    previous: bool,
}

impl Target {
    fn logs<N: Operations>(&self, api: &Api<N>) -> Result<crate::node::LogSource, Failure> {
        let Names { namespace, name } = &self.names;
        Ok(api.node.logs(namespace, name, self.container.as_deref(), self.previous)?)
    }

    /// Opens the files, all of the same moment.
    fn open<N: Operations>(&self, api: &Api<N>) -> Result<VecDeque<LogFile>, Failure> {
        // Rotation between listing and opening shows as a list that has changed.
        for _ in 0..10 {
            let files: VecDeque<_> =
                self.logs(api)?.files.iter().filter_map(|path| LogFile::open(path)).collect();
            if files::ids(&self.logs(api)?.files).eq(files.iter().map(LogFile::id)) {
                return Ok(files);
            }
        }
        Err(Failure::internal("the log is rotated too fast to be read"))
    }

    /// Says what the container waits for, instead of showing a log that cannot exist yet.
    fn refuse_if_waiting<N: Operations>(&self, api: &Api<N>) -> Result<(), Failure> {
        let Names { namespace, name } = &self.names;
        let pod = api.node.pod(namespace, name)?;
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
        let status = statuses.into_iter().flatten().find(|status| {
            self.container.as_ref().is_none_or(|container| *container == status.name)
        });
        let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref());
        let (Some(status), Some(waiting)) = (status, waiting) else {
            return Ok(());
        };
        let texts = [waiting.reason.as_deref(), waiting.message.as_deref()];
        let texts: Vec<_> = texts.into_iter().flatten().filter(|text| !text.is_empty()).collect();
        Err(Failure::bad_request(format!(
            "container \"{}\" in pod \"{name}\" is waiting to start: {}",
            status.name,
            texts.join(": ")
        )))
    }
}

struct Reader<N> {
    api: Api<N>,
    target: Target,
    /// What is left to read, oldest first; the first one is being read.
    files: VecDeque<LogFile>,
    decoder: Decoder,
    follow: bool,
    /// Bytes that may still be sent.
    left: u64,
    /// Whether nothing more will be written than is written now.
    ended: bool,
}

/// What following a log has found.
enum Found {
    MoreFiles,
    End,
    Nothing,
}

impl<N: Operations> Reader<N> {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while self.left > 0 && !self.api.shutdown.is_cancelled() {
            let chunk = match self.files.front_mut() {
                Some(file) => match file.read().await {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        self.left = 0;
                        return Some(Err(error));
                    }
                },
                None => Vec::new(),
            };
            let mut text = Vec::new();
            if !chunk.is_empty() {
                self.decoder.push(&chunk, &mut text);
            } else if self.files.len() > 1 {
                self.files.pop_front();
            } else if self.ended || !self.follow {
                self.decoder.finish(&mut text);
                let text = self.limit(text);
                self.left = 0;
                return (!text.is_empty()).then_some(Ok(text));
            } else {
                // Whatever is found, the file is read once more before it counts as read: lines
                // may have come between the read above and this look.
                match self.look() {
                    Found::MoreFiles => {}
                    Found::End => self.ended = true,
                    Found::Nothing => {
                        tokio::select! {
                            () = tokio::time::sleep(POLL) => {}
                            () = self.api.shutdown.cancelled() => {}
                        }
                    }
                }
            }
            if !text.is_empty() {
                return Some(Ok(self.limit(text)));
            }
        }
        None
    }

    /// Looks for files that rotation has begun since.
    fn look(&mut self) -> Found {
        let Ok(source) = self.target.logs(&self.api) else {
            return Found::End;
        };
        let mut news = source.files.as_slice();
        if let Some(current) = self.files.back() {
            let Some(last) = news.last() else {
                return Found::End;
            };
            if !current.is_of_run(last) {
                return Found::End;
            }
            let known = files::ids(news).position(|id| id == current.id());
            news = &news[known.map_or(0, |known| known + 1)..];
        }
        let opened: VecDeque<_> = news.iter().filter_map(|path| LogFile::open(path)).collect();
        match opened.len() {
            0 if source.live => Found::Nothing,
            0 => Found::End,
            count => {
                // Were the log rotated between listing and opening, one might be left out.
                let Ok(again) = self.target.logs(&self.api) else {
                    return Found::End;
                };
                let ids: Vec<_> = files::ids(&again.files).collect();
                let expected = ids.len().checked_sub(count).map(|start| &ids[start..]);
                if expected
                    .is_some_and(|ids| opened.iter().map(LogFile::id).eq(ids.iter().copied()))
                {
                    self.files.extend(opened);
                    return Found::MoreFiles;
                }
                Found::Nothing
            }
        }
    }

    fn limit(&mut self, mut text: Vec<u8>) -> Bytes {
        let length = usize::try_from(self.left).map_or(text.len(), |left| left.min(text.len()));
        text.truncate(length);
        self.left -= u64::try_from(length).unwrap_or(self.left);
        text.into()
    }
}
