//! A blob from a registry to the disk: hashed on the way, and continued after a cut.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::bytes::Bytes;

use super::{Error, Session, error::Kind, session::Rest};
use crate::image::{
    self,
    blobs::{Blobs, Partial},
    digest::Digest,
};

/// Cuts in a row without a byte between them.
const MAX_CUTS: u32 = 4;
/// Before the second of them; doubles.
const PAUSE: Duration = Duration::from_millis(200);
/// Pieces on the way to the disk: network, hash and disk wait for each other no sooner.
const PIECES: usize = 32;

/// Is told how many bytes of a blob are here.
pub(in crate::image) type Report = Arc<dyn Fn(u64) + Send + Sync>;

/// Makes sure that a blob is here. It must be leased.
pub(in crate::image) async fn download(
    session: &Session,
    blobs: &Blobs,
    digest: &Digest,
    size: u64,
    report: &Report,
) -> Result<(), image::Error> {
    let writing = blobs.write_lock(digest).await;
    if blobs.has(digest, size) {
        report(size);
        return Ok(());
    }
    let open = {
        let (blobs, digest) = (blobs.clone(), digest.clone());
        move || blobs.resume(&digest, size, writing)
    };
    let mut partial = image::blocking(open).await?;
    // What an earlier attempt has left may be damaged; what came just now is the registry's word.
    let mut is_suspect = partial.length() > 0;
    let mut cuts = 0;
    loop {
        while partial.length() < size {
            let before = partial.length();
            let result;
            (partial, result) = go_on(session, digest, partial, report).await?;
            let Err(error) = result else { break };
            cuts = if partial.length() > before { 0 } else { cuts + 1 };
            if error.kind != Kind::Cut || cuts == MAX_CUTS {
                return Err(error.into());
            }
            tracing::debug!(%digest, at = partial.length(), %error, "a download is continued");
            tokio::time::sleep(PAUSE * 2_u32.pow(cuts)).await;
        }
        let length = partial.length();
        let (place, expected) = (blobs.clone(), digest.clone());
        let verdict = image::blocking(move || place.finish(partial, &expected)).await?;
        match verdict {
            Ok(()) => return Ok(()),
            Err((found, fresh)) if is_suspect => {
                tracing::info!(%digest, %found, "what was here of a blob was damaged");
                is_suspect = false;
                partial = fresh;
            }
            Err((found, _)) => {
                blobs.discard(digest);
                let host = session.host();
                return Err(Error::wrong(format!(
                    "{host} sends {length} bytes of {found} for the blob of {size} bytes {digest}"
                ))
                .into());
            }
        }
    }
}

/// Asks for what is missing, and writes what comes.
async fn go_on(
    session: &Session,
    digest: &Digest,
    mut partial: Partial,
    report: &Report,
) -> Result<(Partial, Result<(), Error>), image::Error> {
    let Rest { whole, mut bytes } = match session.blob(digest, partial.length()).await {
        Ok(rest) => rest,
        Err(error) => return Ok((partial, Err(error))),
    };
    let (sender, mut receiver) = mpsc::channel::<Bytes>(PIECES);
    let report = Arc::clone(report);
    // Hashing takes as long as receiving, and may have a processor of its own.
    let writer = image::blocking(move || {
        let written = (|| -> Result<bool, image::Error> {
            if whole && partial.length() > 0 {
                partial.restart()?;
            }
            while let Some(piece) = receiver.blocking_recv() {
                if !partial.add(&piece)? {
                    return Ok(false);
                }
                report(partial.length());
            }
            Ok(true)
        })();
        Ok((partial, written))
    });
    let mut result = Ok(());
    while let Some(piece) = bytes.next().await {
        match piece {
            Ok(piece) => {
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                let host = session.host();
                let text = format!("the connection to {host} broke: {error}");
                result = Err(Error::new(Kind::Cut, text));
                break;
            }
        }
    }
    drop(sender);
    let (partial, written) = writer.await?;
    let host = session.host();
    if !written? {
        return Ok((
            partial,
            Err(Error::wrong(format!("{host} sends more bytes than {digest} has"))),
        ));
    }
    if result.is_ok() && !partial.is_complete() {
        let at = partial.length();
        let text = format!("{host} sends only {at} bytes of {digest}");
        result = Err(Error::new(Kind::Cut, text));
    }
    Ok((partial, result))
}
