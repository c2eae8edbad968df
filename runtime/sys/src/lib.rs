//! Safe wrappers around the system calls that Portreeve needs.
