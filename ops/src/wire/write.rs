//! Documents with their jobs, and points.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// JSON body of `POST /api/v1/documents`.
#[derive(Clone, Debug, Serialize)]
pub struct DocumentRequest {
    /// Chosen here, so that ingesting again replaces.
    pub id: String,
    /// Title, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The text.
    pub text: String,
    /// Metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// Where it goes.
    pub collection: String,
}

/// Answer of `POST /api/v1/documents`.
#[derive(Clone, Debug, Deserialize)]
pub struct DocumentAccepted {
    /// The document.
    pub id: String,
    /// What to follow.
    pub job_id: String,
}

/// Answer of `GET /api/v1/jobs/{id}`.
#[derive(Clone, Debug, Deserialize)]
pub struct Job {
    /// queued, parsing, chunking, embedding, indexing, done, failed or cancelled.
    pub status: String,
    /// Whether nothing follows.
    pub terminal: bool,
    /// Why it failed, was cancelled, or is tried again.
    #[serde(default)]
    pub error: Option<JobError>,
}

/// Why a job is not done.
#[derive(Clone, Debug, Deserialize)]
pub struct JobError {
    /// In words.
    pub message: String,
}

/// Body of `PUT /api/v1/collections/{c}/points`.
#[derive(Clone, Debug, Serialize)]
pub struct PointsRequest {
    /// At most `limits::POINTS_PER_BATCH_MAX`.
    pub points: Vec<Point>,
}

/// One vector with its id.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Chosen by the caller; hits carry it as `document_id`.
    pub id: String,
    /// `[dim]`.
    pub vector: Vec<f32>,
}

/// Answer of `PUT /api/v1/collections/{c}/points`.
#[derive(Clone, Debug, Deserialize)]
pub struct PointsAccepted {
    /// Points that are durable.
    pub acked: u64,
    /// Fewest copies that hold one of them.
    #[serde(default)]
    pub copies_acked_min: u32,
}
