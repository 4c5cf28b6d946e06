//! Wire types of the control plane.
