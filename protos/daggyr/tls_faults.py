"""Why a connection was not made, for a person: from gRPC's words to what is wrong with the TLS files, and which option mends it.

The command line and the agent ask it; both have the options that it names. The words are those of gRPC 1.75 to
1.85, so each has a test.
"""

from __future__ import annotations


def tls_fault(said: str, address: str, *, tls: bool, option: str = "--server") -> str | None:
    """What is wrong and what to do; None if gRPC's words (`said`) are of something else than TLS.

    `tls` is whether the caller uses it, `option` what names the server.
    """
    if "WRONG_VERSION_NUMBER" in said:
        return f"the server at {address} does not speak TLS: leave out --tls and the other --tls options"
    if "certificate has expired" in said:
        return f"the certificate of {address} has expired: whoever runs the server has to put a new one in its place"
    if "certificate is not yet valid" in said:
        return f"the certificate of {address} is not valid yet: is the clock of this host, or of the one that made it, right?"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return f"the certificate of {address} is not trusted: name the authority that signed it with --tls-ca FILE"
    if "Hostname Verification" in said or "is not in peer certificate" in said:  # the newer words, and the older
        return f"the certificate of {address} is for another name: give {option} the name that is in the certificate"
    if "security handshaker" in said or (tls and "empty address list" in said):
        return "the TLS files cannot be used: --tls-ca, --tls-cert and --tls-key take PEM files, and the last two belong together"
    if "Socket closed" in said or "HTTP/2" in said or "connection reset" in said.lower():
        hint = (
            "if it asks for a client certificate, give --tls-cert and --tls-key, of an authority that it trusts and not expired"
            if tls
            else "if it uses TLS, add --tls (and --tls-ca FILE for an authority of your own)"
        )
        return f"{address} closed the connection: {hint}; if that is no DaggyR server, name another with {option}"
    return None
