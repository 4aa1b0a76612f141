// The console: a caller that is signed in sees its tasks and where their callbacks are; it submits, cancels, redelivers
// and tries out receivers. Here it starts, and each address gets its view.

start({
  signIn: showSignIn,
  nothing: showNothing,
  named: {
    __proto__: null, // else `#/constructor` would be a view
    tasks: (parameters, id) => (id ? showTask(id) : showTasks(parameters)),
    submit: showSubmit,
    any: showAny,
    watch: showWatch,
    callbacks: showCallbacks,
  },
});
setInterval(refreshNear, 1000);
