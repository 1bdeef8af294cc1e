"""What the service can refuse.

ServiceError                 500
├── InvalidRequest           400   a field is wrong; `param` names it
│   ├── ModelNotFound
│   ├── FileNotUsable
│   └── IllegalMove                what is asked does not fit the status
├── NotAuthenticated         401
├── NotFound                 404   also what belongs to another project
├── TooSlow                  408   a body that trickles
├── TooLarge                 413
├── TooMany                  429   too much at once; ask again
├── Unavailable              503   the database does not answer; ask again
└── StorageFull              507   the disk that files arrive on is full; nothing of the request was kept

A job that fails in training is data of the job, not one of these.
"""


class ServiceError(Exception):
    """A refusal with its HTTP status, the envelope's `type` and `code`, and the field it is about."""

    status_code = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param or self.param
        self.code = code or self.code


class InvalidRequest(ServiceError):
    """The caller must change something."""

    status_code = 400
    type = "invalid_request_error"


class ModelNotFound(InvalidRequest):
    """The spec names a base model that this service does not have."""

    code = "model_not_found"
    param = "model"


class FileNotUsable(InvalidRequest):
    """The spec names a file that does not exist, or cannot be trained on."""

    code = "invalid_training_file"
    param = "training_file"


class IllegalMove(InvalidRequest):
    """What is asked does not fit the status any more."""

    code = "illegal_move"


class NotAuthenticated(ServiceError):
    """No key, or none that is valid; the answer does not tell which."""

    status_code = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotFound(ServiceError):
    """No such thing in the caller's project."""

    status_code = 404
    type = "not_found_error"
    code = "not_found"


class TooSlow(ServiceError):
    """A body that does not come."""

    status_code = 408
    type = "invalid_request_error"
    code = "too_slow"


class TooLarge(ServiceError):
    """A body above what the settings allow."""

    status_code = 413
    type = "invalid_request_error"
    code = "too_large"


class TooMany(ServiceError):
    """More at once than is done at once; a retry mends it."""

    status_code = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(ServiceError):
    """A part of the service does not answer; a retry mends it."""

    status_code = 503
    code = "unavailable"


class StorageFull(ServiceError):
    """There is no room for what was sent, whoever's it is."""

    status_code = 507
    code = "no_space"
