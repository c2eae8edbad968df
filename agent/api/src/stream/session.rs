//! A process's streams on the channels of whatever carries them.
//!
//! ```text
//!   stdout --read 32 KiB--+
//!   stderr --read 32 KiB--+--> queue of 4 --> socket      the process waits when the client does not read
//!   socket --> stdin, resize
//!   exit code --> what is left of the output --> Status on channel 3 --> close
//! ```

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::carrier::{Left, Outgoing, Receiver, Sender};
use crate::backend::{BackendError, Input, Output, Session};
use crate::channel::{CHUNK_BYTES, ERROR, Frame, RESIZE, STDERR, STDIN, STDOUT, TerminalSize};

/// Frames that wait for the client.
const QUEUE: usize = 4;
/// How long output may pause once the process is gone; heirs of its pipes may live on.
const LINGER: Duration = Duration::from_millis(500);
/// How long a client has to answer the close.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a session is over.
enum Over {
    Process(Result<i32, BackendError>),
    OutputEnded,
    ClientLeft,
    Closing,
}

/// Carries a session to its end, or says why there is none.
pub(crate) async fn serve<S: Sender, R: Receiver>(
    carrier: (S, R),
    session: impl Future<Output = Result<Session, BackendError>>,
    stop: CancellationToken,
) {
    match session.await {
        Ok(session) => run(carrier, session, stop).await,
        Err(error) => refuse(carrier, error).await,
    }
}

/// Carries a session to its end.
async fn run<S: Sender, R: Receiver>((mut sink, mut stream): (S, R), session: Session, stop: CancellationToken) {
    let Session { stdin, stdout, stderr, resize, exit_code } = session;
    let (queue, mut frames) = mpsc::channel::<Frame>(QUEUE);
    let process_gone = CancellationToken::new();
    let has_output = stdout.is_some() || stderr.is_some();

    let status = {
        let outputs = {
            let (queue, gone) = (queue.clone(), process_gone.clone());
            async move {
                tokio::join!(
                    copy_out(stdout, STDOUT, queue.clone(), gone.clone()),
                    copy_out(stderr, STDERR, queue, gone),
                );
            }
        };
        drop(queue);
        let writer = async {
            while let Some(frame) = frames.recv().await {
                sink.send(Outgoing::Frame(frame)).await?;
            }
            Ok(())
        };
        // The outputs end the queue, the queue's end ends the writer.
        let output = async { tokio::join!(outputs, writer).1 };
        tokio::pin!(output);
        let input = copy_in(&mut stream, stdin, resize);
        tokio::pin!(input);
        let is_attached = exit_code.is_none();
        let ended = async move {
            match exit_code {
                Some(exit_code) => exit_code.await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(ended);

        let mut output_done = false;
        let over = loop {
            tokio::select! {
                // cancel-safe: nothing is taken
                () = stop.cancelled() => break Over::Closing,
                // cancel-safe: pinned outside of the loop
                ended = &mut ended => break Over::Process(ended),
                // cancel-safe: pinned outside of the loop
                written = &mut output, if !output_done => match written {
                    Err(Left) => break Over::ClientLeft,
                    Ok(()) if is_attached && has_output => break Over::OutputEnded,
                    Ok(()) => output_done = true,
                },
                // cancel-safe: pinned outside of the loop
                () = &mut input => break Over::ClientLeft,
            }
        };
        match over {
            Over::ClientLeft => return,
            Over::Closing => failure_status("the agent is stopping; the process may go on"),
            Over::OutputEnded => success_status(),
            Over::Process(ended) => {
                process_gone.cancel();
                if !output_done {
                    tokio::select! {
                        // cancel-safe: nothing is taken; a client that does not read loses what it did not take
                        () = stop.cancelled() => {}
                        // cancel-safe: pinned outside
                        written = output.as_mut() => if written.is_err() {
                            return;
                        },
                    }
                }
                match ended {
                    Ok(0) => success_status(),
                    Ok(code) => exit_status(code),
                    Err(error) => failure_status(&error.to_string()),
                }
            }
        }
    };
    part(sink, stream, status).await;
}

/// Says why there is no session.
async fn refuse<S: Sender, R: Receiver>((mut sink, stream): (S, R), error: BackendError) {
    let status = match error {
        BackendError::Command { message, code } => {
            let frame = Frame::Bytes { channel: STDERR, payload: format!("{message}\n").into() };
            if sink.send(Outgoing::Frame(frame)).await.is_err() {
                return;
            }
            exit_status(code)
        }
        other => failure_status(&other.to_string()),
    };
    part(sink, stream, status).await;
}

async fn copy_out(output: Option<Output>, channel: u8, queue: mpsc::Sender<Frame>, process_gone: CancellationToken) {
    let Some(mut output) = output else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            // cancel-safe: a read that is dropped has read nothing
            read = output.read(&mut buffer) => read,
            // cancel-safe: nothing is taken
            () = async { process_gone.cancelled().await; tokio::time::sleep(LINGER).await } => break,
        };
        // A terminal whose last process is gone answers with an error: that is its end.
        let Ok(read @ 1..) = read else { break };
        let payload = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
        if queue.send(Frame::Bytes { channel, payload }).await.is_err() {
            return;
        }
    }
}

/// Carries what the client sends until it leaves.
async fn copy_in(stream: &mut impl Receiver, mut stdin: Option<Input>, resize: Option<mpsc::Sender<(u16, u16)>>) {
    while let Some(frame) = stream.next().await {
        match frame {
            Frame::Bytes { channel: STDIN, payload } => {
                if let Some(input) = &mut stdin
                    && (input.write_all(&payload).await.is_err() || input.flush().await.is_err())
                {
                    // The process does not read any more; it may still write.
                    stdin = None;
                }
            }
            Frame::Bytes { channel: RESIZE, payload } => {
                if let (Some(resize), Ok(size)) = (&resize, serde_json::from_slice::<TerminalSize>(&payload)) {
                    let _end = resize.send((size.width, size.height)).await;
                }
            }
            Frame::End { channel: STDIN } => {
                if let Some(mut input) = stdin.take() {
                    drop(input.shutdown().await);
                }
            }
            _ => {}
        }
    }
}

/// Says how it ended, and closes.
async fn part(mut sink: impl Sender, mut stream: impl Receiver, status: Bytes) {
    let goodbye = async {
        sink.send(Outgoing::Frame(Frame::Bytes { channel: ERROR, payload: status })).await?;
        sink.send(Outgoing::Close).await?;
        while stream.next().await.is_some() {}
        Ok::<(), Left>(())
    };
    drop(tokio::time::timeout(GOODBYE, goodbye).await);
}

fn success_status() -> Bytes {
    json!({ "metadata": {}, "status": "Success" }).to_string().into()
}

fn exit_status(code: i32) -> Bytes {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with exit code {code}"),
        "reason": "NonZeroExitCode",
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
    .to_string()
    .into()
}

fn failure_status(message: &str) -> Bytes {
    json!({ "metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500 })
        .to_string()
        .into()
}
