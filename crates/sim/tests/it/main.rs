//! The world at work, and the house in order.

mod scenarios;
mod tidy;
mod zones;
